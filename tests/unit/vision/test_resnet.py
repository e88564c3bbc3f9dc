import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing import vision  # noqa: E402
from sparing.errors import ConfigError  # noqa: E402
from sparing.vision import ResNet, ResNetConfig, resnet8, resnet18, resnet20, resnet50, resnet101  # noqa: E402


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


# torchvision's documented `num_params`; and the entries of its state dicts.
@pytest.mark.parametrize(
    ("factory", "parameters", "entries"),
    [(resnet18, 11_689_512, 122), (resnet50, 25_557_032, 320), (resnet101, 44_549_160, 626)],
)
def test_torchvision_counts(factory, parameters, entries):
    with torch.device("meta"):
        model = factory()
    assert count(model) == parameters
    assert len(model.state_dict()) == entries


def test_torchvision_names_and_shapes():
    with torch.device("meta"):
        small, large = resnet18().state_dict(), resnet50().state_dict()
    for state, expected in [
        (
            small,
            {
                "conv1.weight": (64, 3, 7, 7),
                "bn1.running_mean": (64,),
                "bn1.num_batches_tracked": (),
                "layer1.0.conv1.weight": (64, 64, 3, 3),
                "layer1.1.bn2.bias": (64,),
                "layer2.0.conv1.weight": (128, 64, 3, 3),
                "layer2.0.downsample.0.weight": (128, 64, 1, 1),
                "layer2.0.downsample.1.running_var": (128,),
                "layer4.1.conv2.weight": (512, 512, 3, 3),
                "fc.weight": (1000, 512),
                "fc.bias": (1000,),
            },
        ),
        (
            large,
            {
                "layer1.0.downsample.0.weight": (256, 64, 1, 1),
                "layer1.2.conv3.weight": (256, 64, 1, 1),
                "layer3.5.conv2.weight": (256, 256, 3, 3),
                "layer4.0.bn3.weight": (2048,),
                "fc.weight": (1000, 2048),
            },
        ),
    ]:
        assert {name: tuple(state[name].shape) for name in expected} == expected
    assert "layer1.0.downsample.0.weight" not in small
    assert "conv1.bias" not in small


def test_small_image_networks():
    # ResNet-20 with identity shortcuts has 269,722 parameters; two projections with their norms come on top.
    assert count(resnet20()) == 269_722 + (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    assert count(resnet8()) == 78_042
    assert resnet20().num_features == 64
    assert resnet20(width=8, num_classes=100).fc.weight.shape == (100, 32)


@pytest.mark.parametrize(
    ("config", "side"),
    [
        (ResNetConfig(layers=(1, 1), width=4, num_classes=7, stem="cifar"), 12),
        (ResNetConfig(block="bottleneck", layers=(1, 2), width=4, num_classes=7), 32),
    ],
)
def test_forward_and_penultimate(config, side):
    model = ResNet(config).eval()
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    features = model.penultimate(x)
    assert features.shape == (2, model.num_features)
    assert features.dtype == torch.float32
    assert model(x).shape == (2, 7)
    assert torch.allclose(model(x), model.fc(features))
    assert model.last_linear is model.fc
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
        assert model.penultimate(x).dtype == torch.float32


def test_the_stems_keep_or_quarter_the_image():
    x = torch.zeros(1, 3, 32, 32)
    for stem, side in [("cifar", 32), ("imagenet", 8)]:
        model = resnet18(width=4, stem=stem, num_classes=2).eval()
        seen = []
        model.layer1.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].shape))
        model(x)
        assert tuple(seen[0][2:]) == (side, side)


def test_stage_maps():
    model = ResNet(ResNetConfig(layers=(1, 1), width=4, num_classes=7)).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = model.stage_maps(x)
    assert [tuple(maps.shape) for maps in found] == [(2, 4, 8, 8), (2, 4, 8, 8), (2, 8, 4, 4)]
    assert torch.allclose(found[-1].mean((2, 3)), model.penultimate(x), atol=1e-6)


def test_the_seed_decides_the_weights_alone():
    torch.manual_seed(1)
    first = resnet8(seed=3).state_dict()
    torch.manual_seed(2)
    second = resnet8(seed=3).state_dict()
    other = resnet8(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_bad_fields_are_named():
    with pytest.raises(ConfigError, match=r"width: .*got 0"):
        resnet8(width=0)
    with pytest.raises(ConfigError, match=r"stem: .*got 'mnist'"):
        resnet18(stem="mnist")


def test_public_names():
    assert vision.resnet8 is resnet8
