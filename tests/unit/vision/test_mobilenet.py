import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing import vision  # noqa: E402
from sparing.errors import ConfigError  # noqa: E402
from sparing.vision import (  # noqa: E402
    ClassifierTrainingConfig,
    InvertedResidual,
    MobileNetV2,
    MobileNetV2Config,
    logits_and_features,
    mobilenet_v2,
    predict,
    train_classifier_,
)

# torchvision's `features.1` to `features.17`: channels in, inside (of the depthwise convolution) and out.
BLOCKS = [
    (32, 32, 16),
    (16, 96, 24),
    (24, 144, 24),
    (24, 144, 32),
    (32, 192, 32),
    (32, 192, 32),
    (32, 192, 64),
    (64, 384, 64),
    (64, 384, 64),
    (64, 384, 64),
    (64, 384, 96),
    (96, 576, 96),
    (96, 576, 96),
    (96, 576, 160),
    (160, 960, 160),
    (160, 960, 160),
    (160, 960, 320),
]


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(**fields):
    with torch.device("meta"):
        return mobilenet_v2(**fields)


def images(side, number=2):
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))


def tiny(**fields):
    return mobilenet_v2(**{"width_multiplier": 0.1, "num_classes": 3, "stem": "cifar", **fields})


def normed(convolution, norm, shape):
    found = {f"{convolution}.weight": shape, f"{norm}.num_batches_tracked": ()}
    return found | {f"{norm}.{name}": shape[:1] for name in ("weight", "bias", "running_mean", "running_var")}


# The first as torchvision documents it (`num_params`); the multipliers as timm's tables round them: 1.68, 1.97 and 6.11
# millions.
@pytest.mark.parametrize(
    ("fields", "parameters"),
    [
        ({}, 3_504_872),
        ({"num_classes": 10}, 2_236_682),
        ({"num_classes": 10, "stem": "cifar"}, 2_236_682),
        ({"width_multiplier": 0.35}, 1_677_128),
        ({"width_multiplier": 0.5}, 1_968_680),
        ({"width_multiplier": 1.4}, 6_108_776),
    ],
)
def test_counts(fields, parameters):
    model = on_meta(**fields)
    assert count(model) == parameters
    assert len(model.state_dict()) == 314


def test_torchvision_names_and_shapes():
    expected = normed("features.0.0", "features.0.1", (32, 3, 3, 3))
    for number, (into, inner, out) in enumerate(BLOCKS, start=1):
        place, next_place = f"features.{number}.conv", 0
        if inner != into:
            expected |= normed(f"{place}.0.0", f"{place}.0.1", (inner, into, 1, 1))
            next_place = 1
        expected |= normed(f"{place}.{next_place}.0", f"{place}.{next_place}.1", (inner, 1, 3, 3))
        expected |= normed(f"{place}.{next_place + 1}", f"{place}.{next_place + 2}", (out, inner, 1, 1))
    expected |= normed("features.18.0", "features.18.1", (1280, 320, 1, 1))
    expected |= {"classifier.1.weight": (1000, 1280), "classifier.1.bias": (1000,)}
    assert {name: tuple(tensor.shape) for name, tensor in on_meta().state_dict().items()} == expected


@pytest.mark.parametrize(
    ("multiplier", "widths"),
    [
        # The second is 16 · 0.75 = 12, which lies between two multiples; 24 · 0.35 = 8.4 may become 8.
        (0.75, (24, 16, 24, 24, 48, 72, 120, 240, 1280)),
        (0.35, (16, 8, 8, 16, 24, 32, 56, 112, 1280)),
        (1.4, (48, 24, 32, 48, 88, 136, 224, 448, 1792)),
        (0.01, (8, 8, 8, 8, 8, 8, 8, 8, 1280)),
        # 32 · 0.6 = 19.2 would become 16, more than a tenth less: it becomes 24.
        (0.6, (24, 16, 16, 24, 40, 56, 96, 192, 1280)),
    ],
)
def test_widths_are_multiples_of_8(multiplier, widths):
    features = on_meta(width_multiplier=multiplier).features
    found = [features[0][0].out_channels]
    found += [features[place].conv[-1].num_features for place in (1, 2, 4, 7, 11, 14, 17)]
    assert (*found, features[18][0].out_channels) == widths


@pytest.mark.parametrize(("stem", "sides"), [("imagenet", [16, 8, 4, 2, 1]), ("cifar", [32, 16, 8, 4])])
def test_the_stems_halve_the_image_five_or_three_times(stem, sides):
    model = tiny(stem=stem).eval()
    x = images(32)
    maps = model.stage_maps(x)
    assert [found.shape[2] for found in maps] == sides
    assert torch.allclose(maps[-1].mean((2, 3)), model.penultimate(x), atol=1e-6)


def test_sizes_as_in_table_2():
    # On the meta device nothing is computed.
    with torch.device("meta"):
        model, x = mobilenet_v2().eval(), torch.zeros(1, 3, 224, 224)
    sides = []
    for layer in model.features:
        layer.register_forward_hook(lambda _, __, out: sides.append(out.shape[2]))
    model(x)
    assert sides == [112, 112, 56, 56, 28, 28, 28, *[14] * 7, *[7] * 5]


@pytest.mark.parametrize("side", [7, 12, 32])
def test_forward_and_penultimate(side):
    model = tiny().eval()
    x = images(side)
    features = model.penultimate(x)
    assert features.shape == (2, model.num_features) == (2, 1280)
    assert features.dtype == torch.float32
    assert model(x).shape == (2, 3)
    assert torch.allclose(model(x), model.last_linear(features))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        assert model.penultimate(x).dtype == torch.float32


def test_blocks_add_where_they_fit():
    x = images(6).repeat(1, 3, 1, 1)[:, :8]
    for out, stride, adds in [(8, 1, True), (8, 2, False), (16, 1, False)]:
        block = InvertedResidual(8, out, stride=stride, expansion=6)
        torch.nn.init.zeros_(block.conv[-1].weight)  # of the last norm: nothing but the shortcut is left
        expected = x if adds else torch.zeros(2, out, 6 // stride, 6 // stride)
        assert torch.equal(block(x), expected)
    depthwise = InvertedResidual(8, 8, stride=1, expansion=6).conv[1][0]
    assert depthwise.groups == 48


def test_the_seed_decides_the_weights_alone():
    torch.manual_seed(1)
    first = tiny(seed=3).state_dict()
    torch.manual_seed(2)
    second = tiny(seed=3).state_dict()
    other = tiny(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("features.0.0.weight", "features.1.conv.0.0.weight", "classifier.1.weight", "classifier.1.bias"):
        assert not torch.equal(first[name], other[name])


def test_depthwise_weights_are_drawn_for_their_group():
    weight = mobilenet_v2(width_multiplier=1.0, seed=0).features[17].conv[1][0].weight
    assert float(weight.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_no_activation_is_changed_in_place():
    model = tiny()
    kept = []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.BatchNorm2d | InvertedResidual):
            layer.register_forward_hook(lambda _, __, out: kept.append((out, out.detach().clone())))
    model(images(8))
    assert len(kept) == 52 + 52 + 17
    assert all(torch.equal(out, copy) for out, copy in kept)


def test_one_step_lowers_the_loss():
    model = tiny()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    x, labels = images(16, 12), torch.arange(12) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)  # norms over few pixels make gradients steep
    losses = []
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]


def test_it_trains_and_answers(squares):
    pytest.importorskip("safetensors", reason="needs sparing[vision]")
    model = tiny()
    config = ClassifierTrainingConfig(epochs=1, batch_size=24, learning_rate=0.05, crop_padding=2, precision="float32")
    before = model.features[0][0].weight.detach().clone()
    train_classifier_(model, squares, config=config)
    assert not torch.equal(model.features[0][0].weight, before)
    logits, features = logits_and_features(model, squares.images)
    assert features.shape == (48, 1280)
    np.testing.assert_allclose(logits, predict(model, squares.images).numpy(), atol=1e-5)


@pytest.mark.parametrize("bad", [0, -1, 16.5, float("nan"), float("inf"), "wide"])
def test_bad_multipliers_are_named(bad):
    with pytest.raises(ConfigError, match="width_multiplier"):
        mobilenet_v2(width_multiplier=bad)


def test_bad_fields_are_named():
    with pytest.raises(ConfigError, match=r"stem: .*got 'mnist'"):
        mobilenet_v2(stem="mnist")
    with pytest.raises(ValueError, match="width"):
        MobileNetV2Config(width=1)
    with pytest.raises(ConfigError, match=r"num_classes: .*got 0"):
        mobilenet_v2(num_classes=0)


def test_public_names():
    assert vision.mobilenet_v2 is mobilenet_v2
    assert vision.MobileNetV2 is MobileNetV2
