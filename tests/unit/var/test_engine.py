"""The engine against the formulas: as it is, with windows, with shared attention, with 8-bit keys and values."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ShapeError  # noqa: E402
from sparing.var import layer as layer_module  # noqa: E402
from sparing.var.engine import Engine  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, PrecisionPlan, SharingPlan  # noqa: E402
from sparing.var.sampling import SamplingSettings  # noqa: E402

TOLERANCE = 2e-5
LABELS = torch.tensor([3, 0])
VARIANTS = [
    {},
    {"l2_norm": False},
    {"shared_adaln": True},
    {"patch_nums": (1, 3, 5), "num_heads": 4},
    {"patch_nums": (2, 3), "mlp_ratio": 2.5, "depth": 3},
]
GREEDY = SamplingSettings(1.5, 1, 1.0)


def plan_for(model, **parts):
    return CompressionPlan(model=model.config, weights=weights_fingerprint(model), **parts)


def sharing(variant, *first_scale):
    return SharingPlan(variant=variant, first_scale=first_scale)


def taught(model, inputs, *, plan=None, guided=True, labels=LABELS):
    return torch.cat(list(Engine(model, plan=plan).teach(labels, inputs, guided=guided)), 1)


def expected_logits(plain, model, inputs, *, guided=True, **parts):
    config, labels = model.config, LABELS.tolist()
    x = inputs.double().numpy()
    if guided:
        labels, x = labels + [config.num_classes] * len(labels), np.concatenate([x, x])
    return plain.logits(plain.arrays(model), config.patch_nums, config.num_heads, labels, x, **parts)


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_scale_by_scale_equals_all_at_once(plain, tiny, changes, guided):
    model = tiny.transformer(**changes)
    inputs = tiny.inputs(model.config)
    assert_close(taught(model, inputs, guided=guided), expected_logits(plain, model, inputs, guided=guided))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("changes", [{}, {"shared_adaln": True, "l2_norm": False}], ids=str)
def test_windows_are_full_attention_masked_with_minus_infinity(plain, tiny, changes, seed):
    model = tiny.transformer(**changes)
    inputs, windows = tiny.inputs(model.config), tiny.windows(model.config, seed=seed)
    found = taught(model, inputs, plan=plan_for(model, windows=windows))
    assert_close(found, expected_logits(plain, model, inputs, windows=windows))
    difference = (found - taught(model, inputs)).abs()
    assert difference[:, :14].max() == 0, "the first three scales are dense"
    assert difference[:, 14:].mean() > 0.01, "windows too wide to show an error"


def test_windows_that_keep_everything_change_nothing(tiny):
    model = tiny.transformer()
    inputs = tiny.inputs(model.config)
    plan = plan_for(model, windows=tiny.windows(model.config, choices=(-1,)))
    torch.testing.assert_close(taught(model, inputs, plan=plan), taught(model, inputs), rtol=0, atol=1e-5)


def test_windows_of_only_some_scales(plain, tiny):
    model = tiny.transformer()
    inputs, windows = tiny.inputs(model.config), tiny.windows(model.config, choices=(1,))
    windows = (tuple(None if scale == 4 else w for scale, w in enumerate(windows[0])), (None,) * 6)
    found = taught(model, inputs, plan=plan_for(model, windows=windows))
    assert_close(found, expected_logits(plain, model, inputs, windows=windows))


@pytest.mark.parametrize("variant", ["output", "map"])
@pytest.mark.parametrize("first_scale", [(0, 0), (None, 3), (5, 1), (2, 0), (4, None)], ids=str)
def test_shared_attention(plain, tiny, variant, first_scale):
    model = tiny.transformer()
    inputs = tiny.inputs(model.config)
    found = taught(model, inputs, plan=plan_for(model, sharing=sharing(variant, *first_scale)))
    assert_close(found, expected_logits(plain, model, inputs, first_scale=first_scale, variant=variant))
    full = taught(model, inputs)
    torch.testing.assert_close(found[:2], full[:2], rtol=0, atol=1e-5)
    assert (found[2:] - full[2:]).abs().max() > 0.01, "too like each other to show an error"


@pytest.mark.parametrize("variant", ["output", "map"])
@pytest.mark.parametrize("changes", [{"l2_norm": False}, {"shared_adaln": True}], ids=str)
def test_shared_attention_within_windows(plain, tiny, variant, changes):
    model = tiny.transformer(**changes)
    inputs, windows, first = tiny.inputs(model.config), tiny.windows(model.config, seed=4), (4, 2)
    plan = plan_for(model, windows=windows, sharing=sharing(variant, *first))
    expected = expected_logits(plain, model, inputs, windows=windows, first_scale=first, variant=variant)
    assert_close(taught(model, inputs, plan=plan), expected)


def test_without_guidance_nothing_is_shared(tiny):
    model = tiny.transformer()
    inputs = tiny.inputs(model.config)
    plan = plan_for(model, sharing=sharing("output", 0, 0))
    assert torch.equal(taught(model, inputs, plan=plan, guided=False), taught(model, inputs, guided=False))


def test_the_cache_without_class_stops_growing_where_the_output_is_shared(tiny):
    model = tiny.transformer()
    inputs = tiny.inputs(model.config)
    both = 2 * 2 * 32 * 4  # images, keys and values, width, bytes

    def cache_bytes(plan):
        engine = Engine(model, plan=plan)
        state = engine.begin(LABELS)
        x = None
        for scale in range(6):
            begin, end = model.config.scale_starts[scale : scale + 2]
            x = engine.embed(inputs[:, begin - 1 : end - 1], state) if scale else None
            engine.step(state, x)
        return state.cache_bytes

    assert cache_bytes(None) == 2 * 2 * both * 130
    assert cache_bytes(plan_for(model, sharing=sharing("output", 0, 0))) == 2 * both * 130
    assert cache_bytes(plan_for(model, sharing=sharing("output", 3, None))) == both * (130 + 14 + 2 * 130)


SHARED = [None, ("output", 0, 3), ("map", 3, 0), ("output", None, 2), ("map", 2, None)]


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("shared", SHARED, ids=str)
@pytest.mark.parametrize("at_once", [1, 3 * 64])
def test_rows_in_pieces_are_rows_in_one(tiny, monkeypatch, guided, shared, at_once):
    # Pieces of single rows; then of three at the last scale, which do not divide the rows of a cache.
    model, labels = tiny.transformer(), torch.tensor([3, 0, 5, 4, 1])
    inputs = tiny.inputs(model.config, batch=5)
    plan = plan_for(
        model,
        windows=tiny.windows(model.config),
        sharing=None if shared is None else sharing(*shared),
        precision=PrecisionPlan(kv_bits=8) if at_once > 1 else None,
    )
    whole = taught(model, inputs, plan=plan, guided=guided, labels=labels)
    seen = []

    def counted(x, scale, shift):
        seen.append(len(x))
        return modulated(x, scale, shift)

    modulated = layer_module.modulated
    monkeypatch.setattr(layer_module, "_TOKENS_AT_ONCE", at_once)
    monkeypatch.setattr(layer_module, "modulated", counted)
    found = taught(model, inputs, plan=plan, guided=guided, labels=labels)
    # Where 8-bit codes of keys tip over, the difference is that of a step.
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-5 if at_once == 1 else 0.05)
    assert (found - whole).abs().mean() < 1e-5
    if at_once == 1:  # only where attention is shared do all rows go together
        assert set(seen) - {1} == ({10} if guided and shared is not None else set())
    elif shared is None:
        assert {3, 1 if guided else 2} <= set(seen)


@pytest.mark.parametrize("shared", SHARED, ids=str)
def test_images_drawn_in_pieces(tiny, monkeypatch, shared):
    model, quantizer = tiny.transformer(seed=5), tiny.tokenizer().quantize
    engine = Engine(model, plan=plan_for(model, sharing=None if shared is None else sharing(*shared)))
    together, f_hat = engine.generate(LABELS, quantizer, GREEDY)
    monkeypatch.setattr(layer_module, "_TOKENS_AT_ONCE", 1)
    found, other = engine.generate(LABELS, quantizer, GREEDY)
    assert all(torch.equal(a, b) for a, b in zip(found, together, strict=True))
    torch.testing.assert_close(other, f_hat)


@pytest.mark.parametrize(
    "parts", [{}, {"first_scale": (0, 3), "variant": "output"}, {"first_scale": (3, 0), "variant": "map"}]
)
def test_eight_bit_keys_and_values(plain, tiny, parts):
    model = tiny.transformer()
    inputs = tiny.inputs(model.config)
    shared = sharing(parts["variant"], *parts["first_scale"]) if parts else None
    found = taught(model, inputs, plan=plan_for(model, sharing=shared, precision=PrecisionPlan(kv_bits=8)))
    error = np.abs(found.numpy() - expected_logits(plain, model, inputs, **parts))
    assert 1e-4 < error.max() < 0.3
    assert error.mean() < 0.02


def test_an_observer_sees_every_map_and_output(plain, tiny):
    model = tiny.transformer()
    config, inputs = model.config, tiny.inputs(model.config)
    engine, seen = Engine(model), {}

    def observer(layer, scale, tensors):
        seen.update({(name, layer, scale): t for name, t in tensors.items()})

    engine.watch(observer)
    watched = torch.cat(list(engine.teach(LABELS, inputs)), 1)
    assert_close(watched, expected_logits(plain, model, inputs))
    places = [(layer, scale) for layer in range(2) for scale in range(6)]
    assert sorted(seen) == [(name, *place) for name in ("map", "output") for place in places]
    # The first layer, by the formulas.
    state, labels, x = plain.arrays(model), [*LABELS.tolist(), 5, 5], np.concatenate([inputs.double().numpy()] * 2)
    six = np.moveaxis(plain.modulations(state, 0, labels), 2, 0)
    x = plain.layer_norm(plain.embed(state, labels, x)) * (1 + six[2]) + six[4]
    mask = plain.visible(config.patch_nums, 2)
    maps = plain.attention_map(*plain.qkv(state, 0, x, 2)[:2], mask)
    outputs = plain.attention(state, 0, x, mask, 2)
    for scale in range(6):
        begin, end = config.scale_starts[scale : scale + 2]
        assert_close(seen["map", 0, scale], maps[:, :, begin:end, :end])
        assert_close(seen["output", 0, scale], outputs[:, begin:end])
    seen.clear()
    engine.watch(None)
    list(engine.teach(LABELS, inputs))
    assert not seen


def test_bfloat16_stays_near(tiny):
    model = tiny.transformer()
    inputs = tiny.inputs(model.config)
    engine = Engine(model, dtype=torch.bfloat16)
    found = torch.cat(list(engine.teach(LABELS, inputs)), 1)
    assert found.dtype == torch.float32
    assert 0 < (found - taught(model, inputs)).abs().mean() < 0.1
    assert model.head.weight.dtype == torch.float32


def test_weights_in_half_precision(tiny):
    model, inputs = tiny.transformer(shared_adaln=True), None
    inputs = tiny.inputs(model.config)
    exact = taught(model, inputs)
    found = taught(model.to(torch.bfloat16), inputs)
    assert 0 < (found - exact).abs().mean() < 0.1


def test_weights_are_shared_with_the_model_and_not_copied(tiny):
    model = tiny.transformer()
    engine = Engine(model)
    assert engine.head.weight.data_ptr() == model.head.weight.data_ptr()
    assert engine.layers[1].fc2.weight.data_ptr() == model.blocks[1].ffn.fc2.weight.data_ptr()
    assert engine.weight_bytes < sum(p.nbytes for p in model.parameters()) + 2 * (3 * 32 + 2) * 4 + 64


@pytest.mark.parametrize("cfg", [0.0, 1.5, 4.0])
@pytest.mark.parametrize("part", [None, "windows", "output", "map"])
def test_greedy_generation_follows_the_formulas(plain, tiny, cfg, part):
    # Each scale's tokens, found by the formulas from the tokens of the scales before.
    model, tokenizer = tiny.transformer(seed=5), tiny.tokenizer()
    config, quantizer = model.config, tokenizer.quantize
    parts, given = {}, {}
    if part == "windows":
        parts = given = {"windows": tiny.windows(config)}
    elif part is not None and cfg:
        given = {"first_scale": (1, 4), "variant": part}
        parts = {"sharing": sharing(part, 1, 4)}
    tokens, f_hat = Engine(model, plan=plan_for(model, **parts)).generate(
        LABELS, quantizer, SamplingSettings(cfg, 1, 1.0)
    )
    state = plain.arrays(quantizer)
    arrays = [t.numpy() for t in tokens]
    inputs = torch.from_numpy(plain.next_inputs(state, config.patch_nums, arrays))
    both = expected_logits(plain, model, inputs, guided=cfg > 0, **given)
    guided = plain.guided(both, config.patch_nums, cfg) if cfg else both
    top = np.sort(guided, -1)
    assert (top[..., -1] - top[..., -2]).min() > 1e-4, "a near tie: take another seed"
    assert np.array_equal(np.concatenate(arrays, 1), guided.argmax(-1))
    summed = sum(plain.upsampled(state, config.patch_nums, t, scale) for scale, t in enumerate(arrays))
    np.testing.assert_allclose(f_hat.numpy(), summed, atol=TOLERANCE)
    assert len({t.tobytes() for row in arrays for t in row}) > 6, "all alike"


def test_an_image_does_not_depend_on_its_batch(tiny):
    model, quantizer = tiny.transformer(), tiny.tokenizer().quantize
    engine = Engine(model)
    together, _ = engine.generate(torch.tensor([4, 5, 0, 4]), quantizer, GREEDY)
    for i, label in enumerate([4, 5, 0, 4]):
        alone, _ = engine.generate(torch.tensor([label]), quantizer, GREEDY)
        assert torch.equal(torch.cat(together, 1)[i], torch.cat(alone, 1)[0])


def test_misuse(tiny):
    model = tiny.transformer(patch_nums=(1, 2))
    engine = Engine(model)
    state = engine.begin(LABELS)
    with pytest.raises(ShapeError, match=r"x: expected \(4, 1, 32\) at scale 0, got \(4, 2, 32\)"):
        engine.step(state, torch.zeros(4, 2, 32))
    engine.step(state)
    engine.step(state, torch.zeros(4, 4, 32))
    with pytest.raises(ArgumentError, match="all scales are done"):
        engine.step(state, torch.zeros(4, 4, 32))
    with pytest.raises(ArgumentError, match="class_labels"):
        engine.begin(torch.tensor([6]))
    with pytest.raises(ArgumentError, match="top_k"):
        engine.generate(LABELS, tiny.tokenizer().quantize, SamplingSettings(1.0, 25, 1.0))
