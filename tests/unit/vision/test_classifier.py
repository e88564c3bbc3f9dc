import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ConfigError, DtypeError, FormatError, NonFiniteError, ShapeError  # noqa: E402
from sparing.vision import (  # noqa: E402
    ClassifierTrainingConfig,
    DistillationStep,
    ImageDataset,
    ResNet,
    ResNetConfig,
    evaluate_classifier,
    logits_and_features,
    penultimate_features,
    predict,
    resnet8,
    train_classifier_,
)
from sparing.vision.classifier_config import learning_rate_at  # noqa: E402

CONFIG = ClassifierTrainingConfig(epochs=3, batch_size=10, learning_rate=0.05, crop_padding=2, precision="float32")


def change(**fields):
    return CONFIG.model_copy(update=fields)


def tiny(seed=0):
    return ResNet(ResNetConfig(layers=(1, 1), width=4, num_classes=3, stem="cifar"), seed=seed)


class WithDropout(torch.nn.Module):
    """The pooled colours, a layer and dropout: draws from torch's global generator in training."""

    def __init__(self):
        super().__init__()
        self.body = tiny()
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.body(x))


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


class StopError(Exception):
    pass


def stop_at(step):
    def progress(stage, done, total):
        if done == step:
            raise StopError

    return progress


def test_it_learns(squares):
    model = tiny()
    calls = []
    result = train_classifier_(
        model,
        squares,
        config=change(epochs=6),
        validation=squares,
        progress=lambda *call: calls.append(call),
    )
    assert evaluate_classifier(model, squares) == result.validation_accuracy > 0.9
    assert not model.training
    assert (result.steps, result.resumed_step, result.precision) == (24, 0, "float32")
    assert [epoch.epoch for epoch in result.history] == list(range(6))
    assert result.history[-1].train_loss < result.history[0].train_loss
    assert calls == [("training", step, 24) for step in range(1, 25)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [tiny, WithDropout])
def test_an_interrupted_training_ends_bit_for_bit_the_same(squares, tmp_path, precision, make):
    config = change(precision=precision, checkpoint_steps=3)
    whole = make()
    torch.manual_seed(1)
    expected = train_classifier_(whole, squares, config=config, validation=squares)
    for stop in (2, 5, 8, 11):  # before the first checkpoint, and in the middle of each epoch
        with pytest.raises(StopError):
            train_classifier_(
                make(),
                squares,
                config=config,
                checkpoint_folder=tmp_path / "run",
                validation=squares,
                progress=stop_at(stop),
            )
        torch.manual_seed(stop)
    model = make()
    result = train_classifier_(model, squares, config=config, checkpoint_folder=tmp_path / "run", validation=squares)
    assert result.resumed_step == 9
    assert result.history == expected.history
    assert_equal(weights(whole), weights(model))
    # A finished training is there at once, into whatever weights.
    again = make()
    assert train_classifier_(again, squares, config=config, checkpoint_folder=tmp_path / "run").resumed_step == 12
    assert_equal(weights(whole), weights(again))


def test_the_same_seed_gives_the_same_weights_and_leaves_chance_alone(squares):
    models = [tiny(), tiny(), tiny()]
    before = torch.get_rng_state()
    train_classifier_(models[0], squares, config=CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    train_classifier_(models[1], squares, config=change(checkpoint_steps=1))
    train_classifier_(models[2], squares, config=change(seed=1))
    assert_equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(models[0].conv1.weight, models[2].conv1.weight)


def test_a_folder_belongs_to_its_training(squares, tmp_path):
    def train(model=None, data=squares, config=CONFIG):
        return train_classifier_(model or tiny(), data, config=config, checkpoint_folder=tmp_path / "run")

    train()
    with pytest.raises(ConfigError, match=r"training\.learning_rate: saved 0\.05, now 0\.1"):
        train(config=change(learning_rate=0.1))
    with pytest.raises(ConfigError, match=r"training\.precision: saved 'float32', now 'bfloat16'"):
        train(config=change(precision="bfloat16"))
    with pytest.raises(ConfigError, match=r"model\.num_parameters"):
        train(resnet8(num_classes=3))
    other = ImageDataset(255 - squares.images, squares.labels, squares.class_names, squares.name)
    with pytest.raises(ConfigError, match=r"dataset\.images_crc32"):
        train(data=other)
    file = next((tmp_path / "run").glob("gen-*/tensors.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(FormatError, match="altered"):
        train()


def test_a_loss_that_is_not_finite(squares, tmp_path):
    model = tiny()
    with torch.no_grad():
        model.fc.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="the loss is nan at step 0"):
        train_classifier_(model, squares, config=CONFIG, checkpoint_folder=tmp_path)
    assert not (tmp_path / "CURRENT").exists()


def test_weights_that_are_not_finite_are_not_saved(squares, tmp_path):
    config = change(learning_rate=1e38, warmup=0.0, checkpoint_steps=1)
    with pytest.raises(NonFiniteError, match=r"lower learning_rate, 1e\+38 now"):
        train_classifier_(tiny(), squares, config=config, checkpoint_folder=tmp_path)


def test_bad_arguments_leave_the_model_alone(squares):
    model = tiny()
    before = weights(model)
    with pytest.raises(ArgumentError, match="batch_size"):
        train_classifier_(model, squares, config=change(batch_size=49))
    with pytest.raises(ArgumentError, match=r"crop_padding: expected less than the 12 pixels"):
        train_classifier_(model, squares, config=change(crop_padding=12))
    other = ImageDataset(squares.images, squares.labels, class_names=("a", "b", "c"), name="other")
    with pytest.raises(ArgumentError, match="validation"):
        train_classifier_(model, squares, config=CONFIG, validation=other)
    with pytest.raises(ArgumentError, match="model"):
        train_classifier_(torch.nn.Flatten(), squares, config=CONFIG)
    assert_equal(before, weights(model))
    assert model.training
    with pytest.raises(ShapeError, match=r"expected logits of shape \(10, 3\) for 'squares', got \(10, 10\)"):
        train_classifier_(resnet8(width=4), squares, config=CONFIG)


def test_config_is_checked():
    for fields in (
        {"epochs": 0},
        {"momentum": 1.0},
        {"learning_rate": float("nan")},
        {"precision": "float16"},
        {"x": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(fields))):
            ClassifierTrainingConfig(**fields)


def test_the_rate_rises_and_falls():
    config = change(learning_rate=1.0, warmup=0.25)
    rates = [learning_rate_at(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[25] == max(rates) == 1.0
    assert rates[:26] == sorted(rates[:26])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert learning_rate_at(config, 100, 100) == pytest.approx(0)
    assert learning_rate_at(change(learning_rate=1.0, warmup=0.0), 0, 10) == 1.0


# --- inference


def test_predict_and_features_do_not_depend_on_the_batches(squares):
    model = tiny()
    model.layer1.eval()
    logits = predict(model, squares.images)
    assert logits.shape == (48, 3)
    assert logits.dtype == torch.float32
    assert torch.allclose(predict(model, torch.from_numpy(squares.images), batch_size=7), logits, atol=1e-5)
    assert model.training
    assert not model.layer1.training
    features = penultimate_features(model, squares.images, batch_size=5)
    assert isinstance(features, np.ndarray)
    assert features.dtype == np.float32
    assert features.shape == (48, 8)
    assert np.allclose(model.fc(torch.from_numpy(features)).detach(), logits, atol=1e-5)
    half = predict(model, squares.images, precision="bfloat16")
    assert half.dtype == torch.float32
    assert torch.allclose(half, logits, atol=0.1)


def test_accuracy_counts_the_right_answers(squares):
    class Answers(torch.nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits, self.start = logits, 0

        def forward(self, x):
            self.start += len(x)
            return self.logits[self.start - len(x) : self.start]

    logits = torch.nn.functional.one_hot(torch.from_numpy(squares.labels), 3).float()
    assert evaluate_classifier(Answers(logits), squares) == 1
    logits[:12] = logits[:12].roll(1, dims=1)
    assert evaluate_classifier(Answers(logits), squares, batch_size=5) == 0.75
    logits[12:24] = float("nan")
    assert evaluate_classifier(Answers(logits), squares) == 0.5
    with pytest.raises(ShapeError, match="expected 3 logits"):
        evaluate_classifier(Answers(torch.zeros(48, 4)), squares)
    with pytest.raises(ShapeError, match="expected logits of shape"):
        evaluate_classifier(Answers(torch.zeros(48)), squares)


def test_bad_images(squares):
    model = tiny()
    with pytest.raises(DtypeError, match="uint8"):
        predict(model, squares.images.astype(np.float32))
    with pytest.raises(ShapeError):
        predict(model, squares.images[:0])
    with pytest.raises(ShapeError):
        predict(model, squares.images[0])
    with pytest.raises(ArgumentError, match="batch_size"):
        predict(model, squares.images, batch_size=0)
    with pytest.raises(ArgumentError, match="precision"):
        predict(model, squares.images, precision="float16")
    with pytest.raises(ArgumentError, match=r"penultimate\(x\), which Linear does not have"):
        penultimate_features(torch.nn.Linear(3, 3), squares.images)


def test_logits_and_features_are_those_of_two_passes():
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    model = resnet8(seed=0)
    logits, features = logits_and_features(model, images)
    np.testing.assert_array_equal(features, penultimate_features(model, images))
    np.testing.assert_allclose(logits, predict(model, images).numpy(), atol=1e-6)


class Twice:
    """Adds up the gradients of two passes: with half the rate, a step of plain training without momentum."""

    def __init__(self, share=1.0):
        self.share = share

    def describe(self):
        return {"name": "twice", "share": self.share}

    def __call__(self, loss_of, model, step):
        for _ in range(2):
            loss = self.share * loss_of()
            loss.backward()
        return loss.detach()


def test_a_step_of_ones_own(squares):
    once, twice = tiny(), tiny()
    config = change(epochs=1, weight_decay=0.0)
    train_classifier_(once, squares, config=config)
    train_classifier_(twice, squares, config=config, step=Twice(share=0.5))
    for name, parameter in once.named_parameters():
        torch.testing.assert_close(parameter, twice.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_a_step_of_ones_own_is_remembered(squares, tmp_path):
    train = lambda step: train_classifier_(tiny(), squares, config=CONFIG, checkpoint_folder=tmp_path, step=step)  # noqa: E731
    train(Twice())
    with pytest.raises(ConfigError, match=r"step\.share: saved 1\.0, now 0\.5"):
        train(Twice(share=0.5))
    with pytest.raises(ConfigError, match="step"):
        train(None)


def test_distillation_teaches_a_student_without_labels(squares):
    teacher = tiny(seed=1)
    train_classifier_(teacher, squares, config=change(epochs=6))
    before = weights(teacher)
    rng = np.random.default_rng(0)
    wrong = ImageDataset(squares.images, rng.permutation(squares.labels), squares.class_names, squares.name)
    student = tiny(seed=2)
    step = DistillationStep(teacher, share=1.0, temperature=1.0)
    train_classifier_(student, wrong, config=change(epochs=12), step=step)
    assert evaluate_classifier(student, squares) > 0.9
    assert_equal(weights(teacher), before)


def test_distillation_by_hand():
    student, teacher = torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(3, 2, bias=False)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    step = DistillationStep(teacher, share=0.25, temperature=2.0)
    found = step(lambda: student(x).square().mean(), student, 0)
    p, q = (teacher(x) / 2).softmax(1), (student(x) / 2).softmax(1)
    expected = 0.75 * student(x).square().mean() + 0.25 * 4 * (p * (p / q).log()).sum(1).mean()
    (gradient,) = torch.autograd.grad(expected, student.weight)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(student.weight.grad, gradient)


def test_distillation_errors(squares, tmp_path):
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match="share"):
            DistillationStep(tiny(), share=share)
    for temperature in (0.0, float("inf"), float("nan")):
        with pytest.raises(ArgumentError, match="temperature"):
            DistillationStep(tiny(), temperature=temperature)
    other = ResNet(ResNetConfig(layers=(1, 1), width=4, num_classes=5, stem="cifar"), seed=0)
    with pytest.raises(ShapeError, match="teacher"):
        train_classifier_(tiny(), squares, config=CONFIG, step=DistillationStep(other))
    train = lambda seed: train_classifier_(  # noqa: E731
        tiny(), squares, config=CONFIG, checkpoint_folder=tmp_path, step=DistillationStep(tiny(seed=seed))
    )
    train(0)
    with pytest.raises(ConfigError, match=r"step\.teacher_crc32"):
        train(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_gets_images_of_its_own_type(squares, dtype):
    model = resnet8(num_classes=squares.num_classes)
    expected = predict(model, squares.images)
    found = predict(model.to(dtype), squares.images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


def test_what_is_all_frozen_is_refused_unchanged(squares):
    model = tiny().requires_grad_(False)
    with pytest.raises(ArgumentError, match="got one whose are all frozen"):
        train_classifier_(model, squares, config=CONFIG)


@pytest.mark.parametrize(("low", "accuracy"), [(-torch.inf, 1), (torch.nan, 0)])
def test_infinite_logits_count_and_nan_does_not(squares, low, accuracy):
    class Answer(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([[low, 1.0, low]])

    some = squares.subset([int(np.flatnonzero(squares.labels == 1)[0])])
    assert evaluate_classifier(Answer(), some) == accuracy


def test_a_teacher_stays_as_it_is(squares):
    teacher = tiny(seed=3)
    step = DistillationStep(teacher)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    teacher.train()
    train_classifier_(tiny(), squares, config=CONFIG, step=step)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_of_first_weights(seed):
    with pytest.raises(ArgumentError, match="seed: expected 0 to"):
        resnet8(seed=seed)
