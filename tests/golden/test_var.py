"""Our transformer, engine and tokenizer against outputs of the published VAR code on formula-filled weights."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.var.config import TokenizerConfig, VARConfig  # noqa: E402
from sparing.var.engine import Engine  # noqa: E402
from sparing.var.quantizer import MultiScaleQuantizer  # noqa: E402
from sparing.var.sampling import SamplingSettings  # noqa: E402
from sparing.var.transformer import VARTransformer  # noqa: E402
from sparing.var.vqvae import VQVAE  # noqa: E402

TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).with_name("var") / "golden.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def transformer(var_fill):
    return var_fill.fill_(VARTransformer(VARConfig(depth=4, embed_dim=256, num_heads=4)))


@pytest.fixture(scope="module")
def inputs():
    return torch.from_numpy((np.random.RandomState(1).standard_normal((2, 679, 32)) * 0.5).astype(np.float32))


@pytest.fixture(scope="module")
def quantizer(var_fill):
    return var_fill.fill_(MultiScaleQuantizer(TokenizerConfig()), "quantize.")


@pytest.fixture(scope="module")
def greedy(transformer, quantizer, golden):
    return Engine(transformer).generate(golden["labels"], quantizer, SamplingSettings(1.5, 1, 1.0))


@pytest.fixture(scope="module")
def vqvae(var_fill):
    with torch.device("meta"):
        model = VQVAE()
    return var_fill.fill_(model.to_empty(device="cpu"))


def block_means(images):
    return torch.nn.functional.avg_pool2d(images, 32)


def assert_logits(found, golden):
    assert found.dtype == torch.float32
    chosen = found[:, golden["positions"]][..., golden["columns"]]
    assert (chosen - golden["logits"]).abs().max() <= TOLERANCE
    assert (found.logsumexp(-1) - golden["logsumexp"]).abs().max() <= TOLERANCE
    # Where the published argmax is not ours, the two codes are a tie within the tolerance.
    theirs = golden["argmax"].long()[..., None]
    assert (found.amax(-1) - found.gather(-1, theirs)[..., 0]).max() <= TOLERANCE
    assert (found.argmax(-1) == theirs[..., 0]).float().mean() > 0.999


def test_the_golden_weights_are_as_many_as_published(transformer):
    assert transformer.num_parameters == 6_358_800
    with torch.device("meta"):
        assert VQVAE().num_parameters == 108_948_355


@torch.inference_mode()
def test_teacher_forced_logits_of_the_plain_transformer(transformer, golden, inputs):
    assert_logits(transformer(golden["labels"], inputs), golden)


def test_teacher_forced_logits_of_the_engine(transformer, golden, inputs):
    assert_logits(torch.cat(list(Engine(transformer).teach(golden["labels"], inputs, guided=False)), 1), golden)


def test_teacher_forced_logits_of_the_engine_beside_the_rows_without_class(transformer, golden, inputs):
    both = torch.cat(list(Engine(transformer).teach(golden["labels"], inputs)), 1)
    assert both.shape == (4, 680, 4096)
    assert_logits(both[:2], golden)
    without = torch.full_like(golden["labels"], 1000)
    with torch.inference_mode():
        torch.testing.assert_close(both[2:], transformer(without, inputs), rtol=0, atol=TOLERANCE)


def test_greedy_tokens_with_guidance(greedy, golden):
    tokens = torch.cat(greedy[0], 1)
    assert tokens.dtype == torch.int64
    wrong = (tokens != golden["greedy_tokens"]).nonzero()
    margins = [float(golden["greedy_margin"][i, j]) for i, j in wrong.tolist()]
    assert not margins, f"first differing token at {wrong[0].tolist()}, published margin {margins[0]:g}"


def test_f_hat_of_the_greedy_tokens(greedy, quantizer, golden):
    assert (greedy[1] - golden["f_hat"]).abs().max() <= TOLERANCE
    split = golden["greedy_tokens"].long().split([p * p for p in quantizer.patch_nums], 1)
    with torch.inference_mode():
        assert (quantizer.decode(split) - golden["f_hat"]).abs().max() <= TOLERANCE


@pytest.mark.slow
@torch.inference_mode()
def test_decoded_image(vqvae, golden):
    images = (vqvae.decode(golden["f_hat"]) + 1) / 2
    assert (block_means(images) - golden["image_8x8_mean"]).abs().max() <= TOLERANCE


@pytest.mark.slow
@torch.inference_mode()
def test_vqvae_latent_tokens_and_reconstruction(vqvae, golden):
    c, i, j = np.ogrid[:3, :256, :256]
    image = (np.sin(0.05 * (c + 1) * i) + np.cos(0.03 * (c + 2) * j)) / 2
    latent = vqvae.latent(torch.from_numpy(image.astype(np.float32))[None])
    assert (latent - golden["vqvae_latent"]).abs().max() <= TOLERANCE
    tokens = vqvae.quantize.encode(golden["vqvae_latent"])
    assert torch.equal(torch.cat(tokens, 1), golden["vqvae_tokens"].long())
    assert torch.equal(torch.cat(vqvae.quantize.encode(latent), 1), golden["vqvae_tokens"].long())
    reconstruction = vqvae.decode_tokens(tokens)
    assert (block_means(reconstruction) - golden["vqvae_reconstruction_8x8_mean"]).abs().max() <= TOLERANCE
