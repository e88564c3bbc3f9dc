"""Fault-tolerant steps: the gradients are those of both losses; weights come back; training resumes bit for bit."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[torch]")
pytest.importorskip("safetensors", reason="needs sparing[torch]")

from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, ConfigError, DtypeError  # noqa: E402
from sparing.faults import BitBias, BitFlip, StuckAt, fixed_point_, inject  # noqa: E402
from sparing.faults.training import FaultTolerantStep, WeightClippingStep, clip_weights_  # noqa: E402
from sparing.vision import ClassifierTrainingConfig, ImageDataset, ResNet, ResNetConfig, train_classifier_  # noqa: E402

STUCK = StuckAt(rate=0.2, form="bit")


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))


def batch():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, 3, 8, 8, generator=generator), torch.arange(6) % 3


def loss_of(model):
    x, y = batch()
    return lambda: nn.functional.cross_entropy(model(x), y)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_gradients_are_those_of_both_losses():
    model, clean, faulty = network(), network(), network()
    loss = FaultTolerantStep(STUCK, share=0.3, seed=5)(loss_of(model), model, 7)
    alone = loss_of(clean)()
    alone.backward()
    with inject(faulty, STUCK, seed=5, draw=7):
        broken = loss_of(faulty)()
        broken.backward()
    assert alone.item() != pytest.approx(broken.item())
    assert float(loss) == pytest.approx(0.7 * alone.item() + 0.3 * broken.item(), rel=1e-6)
    first, second = gradients(clean), gradients(faulty)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 0.7 * first[name] + 0.3 * second[name], rtol=1e-4, atol=1e-6)
    for parameter, untouched in zip(model.parameters(), network().parameters(), strict=True):
        assert torch.equal(parameter, untouched)


@pytest.mark.parametrize(("share", "passes"), [(0.0, 1), (1.0, 1), (0.5, 2)])
def test_no_pass_more_than_needed(share, passes):
    model, calls = network(), []

    def counted():
        calls.append(1)
        return loss_of(model)()

    FaultTolerantStep(STUCK, share=share)(counted, model, 0)
    assert len(calls) == passes


def dataset():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (
        rng.integers(0, 256, (60, 3, 8, 8)).astype(np.uint8) // 3 + (labels * 60).astype(np.uint8)[:, None, None, None]
    )
    return ImageDataset(images, labels, ("a", "b", "c"), "shades")


def fixed(seed=0):
    model = ResNet(ResNetConfig(layers=(1, 1), width=4, num_classes=3, stem="cifar"), seed=seed)
    fixed_point_(model, torch.zeros(1, 3, 8, 8) + 0.5)
    return model


CONFIG = ClassifierTrainingConfig(epochs=2, batch_size=10, learning_rate=0.05, crop_padding=0, precision="float32")


class StopError(Exception):
    pass


@pytest.mark.parametrize("fault", [STUCK, BitBias(p_m=1e-3), BitFlip(p=0.01) + BitBias(p=0.01)])
def test_training_goes_on_bit_for_bit(tmp_path, fault):
    step, whole, halves = FaultTolerantStep(fault, seed=1), fixed(), fixed()
    train_classifier_(whole, dataset(), config=CONFIG, step=step)

    def stop(_, done, __):
        if done == 7:
            raise StopError

    config = CONFIG.model_copy(update={"checkpoint_steps": 3})
    with pytest.raises(StopError):
        train_classifier_(halves, dataset(), config=config, step=step, checkpoint_folder=tmp_path, progress=stop)
    halves = fixed(seed=9)
    result = train_classifier_(halves, dataset(), config=config, step=step, checkpoint_folder=tmp_path)
    assert result.resumed_step == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, halves.state_dict()[name]), name
    with pytest.raises(ConfigError, match=r"step\.share"):
        train_classifier_(
            fixed(),
            dataset(),
            config=config,
            step=FaultTolerantStep(fault, share=0.4, seed=1),
            checkpoint_folder=tmp_path,
        )


def test_weight_clipping():
    model = network()
    WeightClippingStep(0.01, step=FaultTolerantStep(STUCK))(loss_of(model), model, 0)
    assert [model[i].weight.abs().max().item() for i in (0, 4)] == pytest.approx([0.01, 0.01])
    assert model[1].weight.min().item() == 1.0
    assert model[0].weight.grad is not None


def test_a_step_inside_has_its_turn_after_updates_too():
    model = network()
    WeightClippingStep(1.0, step=WeightClippingStep(0.01)).after_update_(model)
    assert model[0].weight.abs().max().item() == pytest.approx(0.01)


def test_no_weight_beyond_the_limit_is_returned(tmp_path):
    def trained(folder=None, **options):
        model, step = fixed(), WeightClippingStep(0.125, step=FaultTolerantStep(BitFlip(p=1e-3)))
        train_classifier_(model, dataset(), config=CONFIG, step=step, checkpoint_folder=folder, **options)
        return model

    def stop(_, done, __):
        if done == 7:
            raise StopError

    model = trained()
    largest = [parameter.detach().abs().max().item() for parameter in model.parameters() if parameter.ndim > 1]
    assert max(largest) == 0.125
    with pytest.raises(StopError):
        trained(tmp_path, progress=stop)
    for name, tensor in trained(tmp_path).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("fault", [BitFlip(p=1e-3), BitBias(p_m=1e-3)])
def test_ranges_follow_a_training_that_never_is_without_faults(fault):
    model = network().train()
    fixed_point_(model, batch()[0])
    with torch.no_grad():
        model[1].weight *= 8
    before = model[1].fixed_point.exponent
    FaultTolerantStep(fault, share=1.0)(loss_of(model), model, 0)
    assert model[1].fixed_point.exponent == before + 3
    peak = model[1].fixed_point.peak.clone()
    with inject(model, fault):
        model(batch()[0] * 100)
    assert torch.equal(model[1].fixed_point.peak, peak)


def test_errors():
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match="share"):
            FaultTolerantStep(STUCK, share=share)
    with pytest.raises(ArgumentError, match="seed"):
        FaultTolerantStep(STUCK, seed=-1)
    for limit in (0.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="limit"):
            WeightClippingStep(limit)
    with pytest.raises(ArgumentError, match="limit"):
        clip_weights_(network(), 0.0)


def test_arguments_are_refused_at_once():
    for wrong in ("stuck-at", None):
        with pytest.raises(DtypeError, match="fault: expected a fault model"):
            FaultTolerantStep(wrong)
    with pytest.raises(DtypeError, match=r"seed: expected an integer, got 1\.5"):
        FaultTolerantStep(STUCK, seed=1.5)
    with pytest.raises(ArgumentError, match="seed"):
        FaultTolerantStep(STUCK, seed=2**63)
    with pytest.raises(ArgumentError, match="include: expected a sequence of names"):
        FaultTolerantStep(STUCK, include="0")
    with pytest.raises(ArgumentError, match="limit: expected a finite number"):
        WeightClippingStep(float("inf"))
    with pytest.raises(DtypeError, match="limit: expected a number, got str"):
        WeightClippingStep("1")
