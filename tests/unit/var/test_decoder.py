"""The decoder made ready to draw: as it is, in pieces, in 8 bits, and without the weights that it does not need."""

import math

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from torch import nn  # noqa: E402

from sparing.errors import ConfigError, FormatError  # noqa: E402
from sparing.quant import Int8Conv2d  # noqa: E402
from sparing.var import decoder as decoder_module  # noqa: E402
from sparing.var.apply import apply_, remove_  # noqa: E402
from sparing.var.decoder import ImageDecoder  # noqa: E402
from sparing.var.formats import precision_plan  # noqa: E402
from sparing.var.pipeline import VARPipeline, weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, PrecisionPlan, load_plan  # noqa: E402

LAYOUTS = [{}, {"ch_mult": (1, 1, 2), "use_attention": False}, {"ch": 32, "num_groups": 32}]


def plan_for(config, *, weights="", **precision):
    return CompressionPlan(model=config, weights=weights, precision=PrecisionPlan(**{"decoder_bits": 8, **precision}))


def of_pipe(pipe, **precision):
    return plan_for(pipe.transformer.config, weights=weights_fingerprint(pipe.transformer), **precision)


def codes(batch=5, *, seed=0):
    """Sums of codes: (B, z, p, p)."""
    return torch.randn(batch, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


def drawn(pipe):
    output = pipe([0, 3, 5], seed=5)
    return output.images, torch.cat(output.tokens, 1)


def psnr(a, b):
    """In dB."""
    error = float((a.float() - b.float()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.fixture(params=LAYOUTS, ids=str)
def tokenizer(request, tiny):
    return tiny.tokenizer(**request.param)


@pytest.fixture
def plan(tiny):
    return plan_for(tiny.transformer_config())


# --- as it is


@torch.inference_mode()
def test_images_are_those_of_the_tokenizer(tokenizer):
    f_hat = 3 * codes()
    before = f_hat.clone()
    images = ImageDecoder(tokenizer)(f_hat)
    exact = (tokenizer.decode(f_hat) + 1) * 127.5
    side = tokenizer.config.image_size
    assert (images.dtype, images.shape) == (torch.uint8, (5, 3, side, side))
    # Rounded to the nearest; values beyond [−1, 1] are cut, and there are some.
    assert (images - exact).abs().max() <= 0.5 + 1e-3
    assert (images == 0).any()
    assert (images == 255).any()
    assert torch.equal(f_hat, before)


@pytest.mark.parametrize("eight", [False, True])
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_pieces_are_images_alone_and_near_those_together(monkeypatch, tokenizer, plan, eight, at_once):
    decoder, f_hat = ImageDecoder(tokenizer, plan=plan if eight else None), codes()
    together = decoder(f_hat)
    parts = torch.cat([decoder(part) for part in f_hat.split(at_once)])
    monkeypatch.setitem(decoder_module._PIXELS_AT_ONCE, "cpu", at_once * tokenizer.config.image_size**2)
    assert torch.equal(decoder(f_hat), parts)
    # Float convolutions of more images may add up in another order: one level in 255 at a tie. Where such a last digit
    # tips a code, what follows moves by its step: 8 levels at most and 49 dB at least over five sets of weights.
    if not eight:
        assert (parts.int() - together.int()).abs().max() <= 1
        assert (parts != together).float().mean() < 0.01
    assert psnr(parts, together) > 44


def test_an_image_larger_than_a_piece_and_no_images(monkeypatch, tiny, plan):
    monkeypatch.setitem(decoder_module._PIXELS_AT_ONCE, "cpu", 1)
    for decoder in (ImageDecoder(tiny.tokenizer()), ImageDecoder(tiny.tokenizer(), plan=plan)):
        assert decoder(codes(2)).shape == (2, 3, 16, 16)
        assert decoder(codes(0)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("precision", [None, {"decoder_bits": None, "kv_bits": 8}])
def test_a_plan_that_leaves_the_decoder(tiny, precision):
    tokenizer, config = tiny.tokenizer(), tiny.transformer_config()
    plan = CompressionPlan(model=config, weights="") if precision is None else plan_for(config, **precision)
    decoder = ImageDecoder(tokenizer, plan=plan)
    assert decoder.decoder is tokenizer.decoder
    assert decoder.free_original_() == 0
    assert torch.equal(decoder(codes()), ImageDecoder(tokenizer)(codes()))


# --- in 8 bits


def test_eight_bits_are_near_and_leave_the_first_and_the_last(tokenizer, plan):
    exact, decoder = ImageDecoder(tokenizer)(codes()), ImageDecoder(tokenizer, plan=plan)
    # 43.7 to 46.9 dB over these layouts and three sets of random weights.
    assert 40 < psnr(decoder(codes()), exact) < 60
    for name, ours in decoder.decoder.named_modules():
        theirs = tokenizer.decoder.get_submodule(name)
        left = name in ("conv_in", "conv_out")
        assert isinstance(ours, Int8Conv2d) == (isinstance(theirs, nn.Conv2d) and not left), name
        assert (ours is theirs) == left, name
        if isinstance(ours, Int8Conv2d):
            where = ("stride", "padding", "dilation", "groups")
            assert [getattr(ours, w) for w in where] == [getattr(theirs, w) for w in where]
    assert not any(isinstance(module, Int8Conv2d) for module in tokenizer.modules())


def test_all_else_is_shared_and_not_copied(tokenizer, plan):
    before = {name: t.clone() for name, t in tokenizer.state_dict().items()}
    decoder = ImageDecoder(tokenizer, plan=plan)
    theirs = {p.data_ptr() for p in tokenizer.decoder.parameters()}
    ours = dict(decoder.decoder.named_parameters())
    convolutions = {"conv_in.weight", "conv_out.weight"}
    assert {name for name, p in ours.items() if p.ndim > 1} == convolutions
    assert all(p.data_ptr() in theirs for p in ours.values())
    integers = [m for m in decoder.modules() if isinstance(m, Int8Conv2d)]
    assert not any(t.data_ptr() in theirs for m in integers for t in m.buffers())
    assert sum(p.nbytes for p in decoder.parameters()) + sum(m.num_bytes for m in integers) < 0.5 * sum(
        p.nbytes for p in tokenizer.decoder.parameters()
    )
    decoder(codes())
    after = tokenizer.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert [name for name, _ in decoder.named_children()] == ["decoder"], "the tokenizer is no part of it"


@pytest.mark.parametrize("eight", [False, True])
def test_half_precision_stays_near(tiny, plan, eight):
    exact = ImageDecoder(tiny.tokenizer())(codes())
    half = ImageDecoder(tiny.tokenizer().bfloat16(), plan=plan if eight else None)
    assert 30 < psnr(half(codes()), exact) < 55


def test_the_weights_that_are_freed_are_those_with_others_in_their_place(tokenizer, plan):
    decoder = ImageDecoder(tokenizer, plan=plan)
    images = decoder(codes())
    convolutions = {
        f"{name}.weight": module.weight.nbytes
        for name, module in tokenizer.decoder.named_modules()
        if isinstance(module, nn.Conv2d) and name not in ("conv_in", "conv_out")
    }
    total = sum(p.untyped_storage().nbytes() for p in tokenizer.parameters())
    assert decoder.free_original_() == sum(convolutions.values())
    assert {name for name, p in tokenizer.decoder.named_parameters() if not p.numel()} == set(convolutions)
    assert sum(p.untyped_storage().nbytes() for p in tokenizer.parameters()) == total - sum(convolutions.values())
    assert torch.equal(decoder(codes()), images)
    assert decoder.free_original_() == 0
    # Encoding is as it was.
    side = tokenizer.config.image_size
    assert len(tokenizer.encode(torch.zeros(1, 3, side, side))) == 6


# --- in a pipeline


def test_a_plan_taken_back_leaves_no_trace(tiny):
    pipe = tiny.pipeline()
    images, tokens = drawn(pipe)
    weights = {name: t.clone() for name, t in pipe.tokenizer.state_dict().items()}
    apply_(pipe, of_pipe(pipe))
    eight, same_tokens = drawn(pipe)
    assert torch.equal(same_tokens, tokens)
    assert 40 < psnr(eight, images) < 60
    remove_(pipe)
    assert all(torch.equal(a, b) for a, b in zip(drawn(pipe), (images, tokens), strict=True))
    assert all(torch.equal(t, weights[name]) for name, t in pipe.tokenizer.state_dict().items())


def test_a_saved_plan_draws_the_same(tiny, tmp_path):
    pipe = tiny.pipeline()
    apply_(pipe, of_pipe(pipe, kv_bits=8))
    expected = drawn(pipe)
    pipe.save_pretrained(tmp_path)
    found = VARPipeline.from_pretrained(tmp_path)
    assert found.plan == pipe.plan
    assert found.plan.precision.decoder_bits == 8
    assert all(torch.equal(a, b) for a, b in zip(drawn(found), expected, strict=True))
    assert any(isinstance(module, Int8Conv2d) for module in found.decoder.modules())


def test_moving_makes_the_decoder_anew(tiny):
    pipe = tiny.pipeline()
    apply_(pipe, of_pipe(pipe))
    first = pipe.decoder
    pipe.to(dtype=torch.bfloat16)
    assert pipe.decoder is not first
    assert pipe.decoder.decoder.conv_in.weight.dtype == torch.bfloat16
    assert drawn(pipe)[0].shape == (3, 3, 16, 16)


def test_the_same_images_from_less_memory(tiny, tmp_path):
    kept, freed = tiny.pipeline(), tiny.pipeline()
    apply_(kept, of_pipe(kept))
    apply_(freed, of_pipe(freed), keep_original=False)
    assert all(torch.equal(a, b) for a, b in zip(drawn(kept), drawn(freed), strict=True))
    assert all(p.numel() for p in freed.transformer.parameters())
    assert not all(p.numel() for p in freed.tokenizer.parameters())
    for call in (
        lambda: remove_(freed),
        lambda: apply_(freed, of_pipe(freed)),
        lambda: freed.save_pretrained(tmp_path / "model"),
        lambda: freed.to(dtype=torch.bfloat16),
    ):
        with pytest.raises(ConfigError, match="original weights were freed"):
            call()
    assert freed.plan == kept.plan
    assert all(torch.equal(a, b) for a, b in zip(drawn(kept), drawn(freed), strict=True))


def test_other_bits_are_refused(tiny, tmp_path):
    config = tiny.transformer_config()
    for bits in (4, 16, 0):
        with pytest.raises(ConfigError, match="decoder_bits"):
            precision_plan(config, decoder_bits=bits)
    plan_for(config).save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan_for(config)
    text = (tmp_path / "plan.json").read_text(encoding="utf-8")
    (tmp_path / "plan.json").write_text(text.replace('"decoder_bits": 8', '"decoder_bits": 4'), encoding="utf-8")
    with pytest.raises(FormatError, match=r"precision\.decoder_bits"):
        load_plan(tmp_path / "plan.json")
