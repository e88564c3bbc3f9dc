"""Training of the tokenizer: it learns, codes stay in use, and a stopped run goes on as if it had not been."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from pydantic import ValidationError  # noqa: E402

from sparing.errors import ArgumentError, ConfigError  # noqa: E402
from sparing.var.training.tokenizer import TokenizerTrainingConfig, train_tokenizer_  # noqa: E402
from sparing.var.vqvae import VQVAE  # noqa: E402

SCHEDULE = (1, 2, 4, 8)


def settings(**changes):
    fields = {"steps": 100, "batch_size": 4, "learning_rate": 2e-3, "warmup_steps": 5, "revive_every": 10}
    return TokenizerTrainingConfig(**{**fields, **changes})


@pytest.fixture
def fresh(tiny):
    def made(seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VQVAE(tiny.tokenizer_config(patch_nums=SCHEDULE))

    return made


def features(images):
    return [torch.nn.functional.avg_pool2d(images, 2), torch.nn.functional.avg_pool2d(images, 4)]


def numbers(images):
    return torch.from_numpy(images).float() / 127.5 - 1


def test_it_learns(fresh, stripes):
    model = fresh()
    result = train_tokenizer_(model, stripes, config=settings(feature_weight=3.0), features=features)
    assert [entry["step"] for entry in result.history] == [50, 100]
    for figure in ("loss", "pixel", "feature"):
        assert result.history[1][figure] < 0.8 * result.history[0][figure]
    assert 0 < result.history[1]["codes_used"] <= 1
    entry = result.history[0]
    assert entry["loss"] == pytest.approx(entry["pixel"] + entry["quantizer"] + 3 * entry["feature"], rel=1e-4)
    images = numbers(stripes.images)
    with torch.inference_mode():
        error = (model.decode_tokens(model.encode(images)) - images).abs().mean()
    assert error < 0.6 * (images - images.mean()).abs().mean()
    assert set(result.averaged) == {name for name, _ in model.named_parameters()}


def test_without_features(fresh, stripes):
    (entry,) = train_tokenizer_(fresh(), stripes, config=settings(steps=50, batch_size=2)).history
    assert "feature" not in entry
    assert entry["loss"] == pytest.approx(entry["pixel"] + entry["quantizer"], rel=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopped_and_resumed_is_uninterrupted(fresh, stripes, tmp_path, precision):
    config = settings(steps=24, precision=precision)
    whole = fresh()
    expected = train_tokenizer_(whole, stripes, config=config, features=features)

    def stop(stage, done, total):
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer_(fresh(), stripes, config=config, features=features, checkpoint_folder=tmp_path, progress=stop)
    resumed = fresh(seed=8)
    found = train_tokenizer_(resumed, stripes, config=config, features=features, checkpoint_folder=tmp_path)
    theirs = whole.state_dict()
    assert all(torch.equal(t, theirs[name]) for name, t in resumed.state_dict().items())
    assert all(torch.equal(t, expected.averaged[name]) for name, t in found.averaged.items())
    assert found.history == expected.history


def test_codes_out_of_use_are_revived(fresh, stripes):
    model = fresh()
    quantizer = model.quantize
    used, dead = torch.arange(24) < 10, torch.arange(24) >= 10
    with torch.no_grad():
        quantizer.embedding.weight[dead] = 1e3
        quantizer.ema_vocab_hit_SV[:, used] = 10.0
    before = quantizer.embedding.weight.detach().clone()
    # One step in whose beginning codes are revived, with a rate that leaves them there.
    train_tokenizer_(model, stripes, config=settings(steps=1, batch_size=24, learning_rate=1e-12, precision="float32"))
    after = quantizer.embedding.weight.detach()
    assert torch.equal(after[used], before[used])
    assert after[dead].abs().max() < 100
    # They are vectors that the scales have to code; of the images as they are, or mirrored.
    assert len(after[dead].unique(dim=0)) > 3
    assert quantizer.ema_vocab_hit_SV[:, dead].min() > 0


def test_codes_settle_in_the_last_third(fresh, stripes):
    model = fresh()
    quantizer = model.quantize
    gone = []

    def lose(stage, done, total):
        with torch.no_grad():
            quantizer.ema_vocab_hit_SV[:, 3:] = 0
            quantizer.ema_vocab_hit_SV[:, :3] = 10
            quantizer.embedding.weight[3:] = 1e3
        gone.append(done)

    seen = []

    def watched(images):
        seen.append(quantizer.embedding.weight.detach()[3:].abs().max().item() < 100)
        return [images]

    config = settings(steps=9, revive_every=1, learning_rate=1e-6)
    train_tokenizer_(model, stripes, config=config, features=watched, progress=lose)
    assert seen[::2] == [True] * 6 + [False] * 3


def test_revived_codes_are_vectors_of_the_batch(fresh, stripes):
    # All images are one that is its own mirror image, so the batch is known.
    model = fresh()
    image = np.full((3, 16, 16), 90, np.uint8)
    image[:, 4:8] = 200
    same = stripes.subset([0] * 8)
    same.images[:] = image
    with torch.no_grad():
        model.quantize.ema_vocab_hit_SV[:, 0] = 10.0
        vectors = torch.cat(model.quantize.residual_vectors(model.latent(numbers(same.images[:4]))))
    train_tokenizer_(model, same, config=settings(steps=1, learning_rate=1e-12, precision="float32"))
    revived = model.quantize.embedding.weight.detach()[1:]
    assert (revived[:, None] - vectors).abs().amax(2).amin(1).max() < 1e-5


def test_images_of_another_size(tiny, stripes):
    with pytest.raises(ArgumentError, match="dataset: expected images of 32×32 pixels"):
        train_tokenizer_(tiny.tokenizer(ch_mult=(1, 1, 1)), stripes, config=settings())


def test_fewer_images_than_a_batch(fresh, stripes):
    with pytest.raises(ArgumentError, match="batch_size: expected 1 to the 24 images there are, got 25"):
        train_tokenizer_(fresh(), stripes, config=settings(batch_size=25))


def test_another_tokenizer_does_not_go_on(fresh, tiny, stripes, tmp_path):
    train_tokenizer_(fresh(), stripes, config=settings(steps=1), checkpoint_folder=tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size: saved 24, now 25"):
        other = tiny.tokenizer(patch_nums=SCHEDULE, vocab_size=25)
        train_tokenizer_(other, stripes, config=settings(steps=1), checkpoint_folder=tmp_path)


@pytest.mark.parametrize("fields", [{"revive_every": 0}, {"feature_weight": -1.0}])
def test_bad_settings(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        settings(**fields)
