import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing import vision  # noqa: E402
from sparing.errors import ConfigError, ShapeError  # noqa: E402
from sparing.vision import (  # noqa: E402
    VGG,
    ClassifierTrainingConfig,
    VGGConfig,
    logits_and_features,
    predict,
    train_classifier_,
    vgg16,
    vgg16_bn,
)

# torchvision's `features` of VGG-16: where each convolution stands, and its output and input channels.
CHANNELS = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256)]
CHANNELS += [(512, 256), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512)]
PLAIN = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
NORMED = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]
POOLS = {False: [4, 9, 16, 23, 30], True: [6, 13, 23, 33, 43]}
HEAD = {"classifier.0": (4096, 25088), "classifier.3": (4096, 4096), "classifier.6": (1000, 4096)}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(factory, **fields):
    with torch.device("meta"):
        return factory(**fields)


def images(side, number=2):
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(0))


def tiny(**fields):
    config = {"layers": (1, 2), "width": 4, "num_classes": 3, "head": "cifar", "batch_norm": True}
    return VGG(VGGConfig(**{**config, **fields}), seed=0)


def layout(places, *, batch_norm):
    expected = {}
    for place, (out, into) in zip(places, CHANNELS, strict=True):
        expected |= {f"features.{place}.weight": (out, into, 3, 3), f"features.{place}.bias": (out,)}
        if batch_norm:
            norm = f"features.{place + 1}."
            expected |= {norm + name: (out,) for name in ("weight", "bias", "running_mean", "running_var")}
            expected[norm + "num_batches_tracked"] = ()
    return expected


# Parameters as torchvision documents them (`num_params`); with 10 classes counted from the layers.
@pytest.mark.parametrize(
    ("factory", "head", "classes", "parameters", "entries"),
    [
        (vgg16, "imagenet", 1000, 138_357_544, 32),
        (vgg16_bn, "imagenet", 1000, 138_365_992, 97),
        (vgg16, "cifar", 10, 14_719_818, 28),
        (vgg16_bn, "cifar", 10, 14_728_266, 93),
    ],
)
def test_counts(factory, head, classes, parameters, entries):
    model = on_meta(factory, head=head, num_classes=classes)
    assert count(model) == parameters
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize(
    ("layers", "parameters"),
    [((1, 1, 2, 2, 2), 132_863_336), ((2, 2, 2, 2, 2), 133_047_848), ((2, 2, 4, 4, 4), 143_667_240)],
)
def test_the_other_columns_of_the_paper(layers, parameters):
    with torch.device("meta"):
        assert count(VGG(VGGConfig(layers=layers))) == parameters


@pytest.mark.parametrize(("factory", "places", "batch_norm"), [(vgg16, PLAIN, False), (vgg16_bn, NORMED, True)])
def test_torchvision_names_and_shapes(factory, places, batch_norm):
    body = layout(places, batch_norm=batch_norm)
    head = {f"{name}.weight": shape for name, shape in HEAD.items()}
    head |= {f"{name}.bias": shape[:1] for name, shape in HEAD.items()}
    state = on_meta(factory).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == body | head
    small = {"classifier.weight": (10, 512), "classifier.bias": (10,)}
    model = on_meta(factory, head="cifar", num_classes=10)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == body | small
    pools = [place for place, layer in enumerate(model.features) if isinstance(layer, torch.nn.MaxPool2d)]
    assert pools == POOLS[batch_norm]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("head", "width", "side", "num_features"), [("cifar", 4, 12, 8), ("imagenet", 1, 33, 64)])
def test_forward_and_penultimate(head, batch_norm, width, side, num_features):
    model = tiny(head=head, width=width, batch_norm=batch_norm).eval()
    x = images(side)
    features = model.penultimate(x)
    assert model.num_features == num_features
    assert features.shape == (2, num_features)
    assert features.dtype == torch.float32
    assert model(x).shape == (2, 3)
    assert torch.allclose(model(x), model.last_linear(features))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        assert model.penultimate(x).dtype == torch.float32


def test_dropout_is_for_training_alone():
    model = tiny(head="imagenet", width=1)
    x = images(8)
    assert not torch.equal(model(x), model(x))
    full = model.eval().penultimate(x)
    assert torch.equal(model(x), model(x))
    model.classifier[5].train()
    dropped = model.penultimate(x)
    kept = dropped != 0
    assert torch.equal(dropped[kept], 2 * full[kept])
    assert 0 < kept.sum() < (full != 0).sum()


def test_stage_maps():
    model = tiny().eval()
    x = images(12)
    found = model.stage_maps(x)
    assert [tuple(maps.shape) for maps in found] == [(2, 4, 12, 12), (2, 8, 6, 6)]
    pooled = torch.nn.functional.max_pool2d(found[-1], 2).mean((2, 3))
    assert torch.allclose(pooled, model.penultimate(x), atol=1e-6)


@pytest.mark.parametrize(("head", "layers"), [("cifar", 7), ("imagenet", 9)])
def test_no_activation_is_changed_in_place(head, layers):
    model = tiny(head=head, width=1)
    kept = []
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.BatchNorm2d | torch.nn.Linear):
            layer.register_forward_hook(lambda _, __, out: kept.append((out, out.detach().clone())))
    model(images(8))
    assert len(kept) == layers
    assert all(torch.equal(out, copy) for out, copy in kept)


def test_the_seed_decides_the_weights_alone():
    torch.manual_seed(1)
    first = vgg16_bn(width=2, head="cifar", seed=3).state_dict()
    torch.manual_seed(2)
    second = vgg16_bn(width=2, head="cifar", seed=3).state_dict()
    other = vgg16_bn(width=2, head="cifar", seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in ("features.0.weight", "classifier.weight", "classifier.bias"):
        assert not torch.equal(first[name], other[name])
    assert not first["features.0.bias"].any()


def test_first_weights_keep_the_size_of_activations():
    features = vgg16(width=8, head="cifar", num_classes=10).eval().penultimate(images(32, 8))
    assert 0.1 < float(features.detach().pow(2).mean().sqrt()) < 10


@pytest.mark.parametrize("batch_norm", [False, True])
def test_one_step_lowers_the_loss(batch_norm):
    model = tiny(batch_norm=batch_norm)
    x, labels = images(12, 12), torch.arange(12) % 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
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
    config = ClassifierTrainingConfig(epochs=1, batch_size=16, learning_rate=0.05, crop_padding=2, precision="float32")
    before = model.features[0].weight.detach().clone()
    train_classifier_(model, squares, config=config)
    assert not torch.equal(model.features[0].weight, before)
    logits, features = logits_and_features(model, squares.images)
    assert features.shape == (48, 8)
    np.testing.assert_allclose(logits, predict(model, squares.images).numpy(), atol=1e-5)


def test_bad_fields_are_named():
    with pytest.raises(ConfigError, match=r"width: .*got 0"):
        vgg16(width=0)
    with pytest.raises(ConfigError, match=r"head: .*got 'mnist'"):
        vgg16_bn(head="mnist")
    with pytest.raises(ValueError, match="layers"):
        VGGConfig(layers=())
    with pytest.raises(ValueError, match="stem"):
        VGGConfig(stem="cifar")


def test_images_that_are_too_small():
    model = vgg16(width=1, head="cifar").eval()
    assert model(torch.zeros(1, 3, 32, 40)).shape == (1, 1000)
    for function in (model, model.penultimate, model.stage_maps):
        with pytest.raises(ShapeError, match=r"x: .* at least 32, got shape \(1, 3, 40, 31\)"):
            function(torch.zeros(1, 3, 40, 31))


def test_public_names():
    assert vision.vgg16_bn is vgg16_bn
