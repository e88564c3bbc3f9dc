"""What the redundancy report says, against maps and outputs by the plain formulas."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, ConfigError, DtypeError, ShapeError  # noqa: E402
from sparing.var import redundancy  # noqa: E402
from sparing.var.apply import apply_  # noqa: E402
from sparing.var.formats import precision_plan  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan  # noqa: E402
from sparing.var.redundancy import measure_redundancy  # noqa: E402

KINDS = ("qkv", "proj", "fc1", "fc2")


@pytest.fixture(scope="module")
def pipe(tiny):
    return tiny.pipeline()


@pytest.fixture(scope="module")
def data():
    return torch.randint(24, (3, 130), generator=torch.Generator().manual_seed(8)), torch.tensor([4, 0, 1])


@pytest.fixture(scope="module")
def report(pipe, data):
    return measure_redundancy(pipe, data=data, batch_size=2)


def plain_parts(plain, pipe, data):
    """For each layer the maps (2·B, H, L, L), the outputs (2·B, L, C), and the inputs of the four linear layers."""
    (tokens, labels), config = data, pipe.transformer.config
    state, rows = plain.arrays(pipe.transformer), labels.tolist() + [config.num_classes] * len(labels)
    split = np.split(tokens.numpy(), config.scale_starts[1:-1], 1)
    inputs = plain.next_inputs(plain.arrays(pipe.tokenizer.quantize), config.patch_nums, split)
    x = plain.embed(state, rows, np.concatenate([inputs, inputs]))
    mask = plain.visible(config.patch_nums, config.num_heads)
    for i in range(config.depth):
        gamma1, gamma2, scale1, scale2, shift1, shift2 = np.moveaxis(plain.modulations(state, i, rows), 2, 0)
        normed = plain.layer_norm(x) * (1 + scale1) + shift1
        q, k, v = plain.qkv(state, i, normed, config.num_heads)
        weights = plain.attention_map(q, k, mask)
        attended = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        out = attended @ state[f"blocks.{i}.attn.proj.weight"].T + state[f"blocks.{i}.attn.proj.bias"]
        x = x + gamma1 * out
        second = plain.layer_norm(x) * (1 + scale2) + shift2
        name = f"blocks.{i}.ffn.fc1"
        inside = plain.gelu_tanh(second @ state[f"{name}.weight"].T + state[f"{name}.bias"])
        x = x + gamma2 * plain.feed_forward(state, i, second)
        yield weights, out, {"qkv": normed, "proj": attended, "fc1": second, "fc2": inside}


def test_attention_by_the_formulas(plain, pipe, data, report):
    config = pipe.transformer.config
    starts, sides = config.scale_starts, config.patch_nums
    assert report.locality.shape == report.segment_mass.shape == (2, 2, 6, 6)
    for layer, (weights, _, _) in enumerate(plain_parts(plain, pipe, data)):
        for scale in range(6):
            for segment in range(6):
                if segment > scale:
                    assert np.isnan(report.segment_mass[layer, :, scale, segment]).all()
                    assert np.isnan(report.locality[layer, :, scale, segment]).all()
                    continue
                block = weights[:, :, starts[scale] : starts[scale + 1], starts[segment] : starts[segment + 1]]
                mass = block.sum(-1).mean((0, 2))
                np.testing.assert_allclose(report.segment_mass[layer, :, scale, segment], mass, rtol=1e-4)
                near = np.zeros(2)
                n, m = sides[scale] ** 2, sides[segment] ** 2
                for i in range(n):
                    for j in range(m):
                        if abs(i * m - j * n) < (sides[segment] + 1) * n:  # a window of a row and one key
                            near += block[:, :, i, j].mean(0) / n
                np.testing.assert_allclose(report.locality[layer, :, scale, segment], near / mass, rtol=1e-4)


def test_masses_of_a_scale_sum_to_one(report):
    np.testing.assert_allclose(np.nansum(report.segment_mass, -1), 1, rtol=1e-5)
    known = report.locality[~np.isnan(report.locality)]
    assert known.min() >= 0
    assert known.max() <= 1 + 1e-6
    assert report.num_images == 3


def test_guidance_by_the_formulas(plain, pipe, data, report):
    starts = pipe.transformer.config.scale_starts
    for layer, (_, out, _) in enumerate(plain_parts(plain, pipe, data)):
        cond, uncond = np.split(out, 2)
        cosine = (cond * uncond).sum(-1) / np.linalg.norm(cond, axis=-1) / np.linalg.norm(uncond, axis=-1)
        for scale in range(6):
            part = slice(starts[scale], starts[scale + 1])
            assert report.guidance_similarity[layer, scale] == pytest.approx(cosine[:, part].mean(), abs=1e-5)
            error = np.linalg.norm(cond[:, part] - uncond[:, part]) / np.linalg.norm(uncond[:, part])
            assert report.guidance_error[layer, scale] == pytest.approx(error, rel=1e-4)


def test_images_without_a_class_are_alike(pipe, data):
    report = measure_redundancy(pipe, data=(data[0], torch.full((3,), 5)))
    np.testing.assert_allclose(report.guidance_similarity, 1, atol=1e-6)
    np.testing.assert_allclose(report.guidance_error, 0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_do_not_matter(pipe, data, report, batch_size):
    other = measure_redundancy(pipe, data=data, batch_size=batch_size)
    for name in ("locality", "segment_mass", "guidance_similarity", "guidance_error"):
        np.testing.assert_allclose(getattr(other, name), getattr(report, name), rtol=1e-4, err_msg=name)


# --- activations


def test_activations_lie_as_by_the_formulas(plain, pipe, data, report):
    assert tuple(summary.kind for summary in report.activations) == KINDS
    starts = pipe.transformer.config.scale_starts
    values = {kind: [] for kind in KINDS}
    for _, _, inputs in plain_parts(plain, pipe, data):
        for kind, x in inputs.items():
            # At most so many values of each call; two images with and without their class, then one.
            for rows in ([0, 1, 3, 4], [2, 5]):
                for a, b in itertools.pairwise(starts):
                    seen = x[rows, a:b].ravel()
                    values[kind].append(seen if len(seen) <= 512 else np.random.default_rng(a).choice(seen, 512))
    for summary in report.activations:
        x = np.concatenate(values[summary.kind])
        assert list(summary.quantiles.values()) == sorted(summary.quantiles.values())
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):
            assert summary.quantiles[share] == pytest.approx(np.quantile(x, share), abs=0.12 * x.std())
        assert summary.skewness == pytest.approx(((x - x.mean()) ** 3).mean() / x.std() ** 3, abs=0.3)
        counts, edges = summary.histogram
        assert len(edges) == len(counts) + 1
        assert counts.dtype == np.int64
        assert (edges[0], edges[-1]) == (summary.quantiles[0.001], summary.quantiles[0.999])


def test_fc2_is_the_skewed_one(report):
    skewness = {summary.kind: summary.skewness for summary in report.activations}
    used = {summary.kind: summary.used_range for summary in report.activations}
    assert max(skewness, key=skewness.get) == min(used, key=used.get) == "fc2"
    assert skewness["fc2"] > 1
    assert 0.5 <= used["fc2"] < 0.6
    assert used["qkv"] > 0.75


@pytest.mark.parametrize("width", [64, 512, 1024, 96])
@pytest.mark.parametrize("tokens", [1, 16, 256])
def test_values_come_from_all_channels(pipe, width, tokens):
    # A stride of a whole number of tokens would see the first channel only.
    watch = redundancy._Watch(redundancy.Engine(pipe.transformer))
    x = torch.arange(width).float().expand(32, tokens, width)
    watch.inputs("fc2")(None, (x,))
    (values,) = watch.values["fc2"]
    assert len(values) == min(512, x.numel())
    assert len(values.unique()) > 0.3 * min(width, 512)
    assert abs(float(values.mean()) / ((width - 1) / 2) - 1) < 0.15


def test_a_summary_of_known_numbers():
    x = np.array([-1.0, 0, 0, 0, 0, 0, 0, 9])
    summary = redundancy._summary("fc1", x)
    assert summary.quantiles[0.0] == -1
    assert summary.quantiles[1.0] == 9
    assert summary.quantiles[0.5] == 0
    assert summary.used_range == 10 / 18
    assert summary.skewness == pytest.approx(((x - 1) ** 3).mean() / x.std() ** 3)
    assert summary.histogram[0].sum() == 8
    flat = redundancy._summary("fc1", np.zeros(5))
    assert (flat.skewness, flat.used_range, flat.histogram[0].sum()) == (0, 0, 5)


# --- the work around it


def test_the_same_again(pipe):
    first, second = (measure_redundancy(pipe, num_images=2, batch_size=2, seed=4) for _ in range(2))
    assert np.array_equal(first.segment_mass, second.segment_mass, equal_nan=True)
    assert [a.quantiles for a in first.activations] == [a.quantiles for a in second.activations]
    other = measure_redundancy(pipe, num_images=2, batch_size=2, seed=5)
    assert not np.array_equal(first.segment_mass, other.segment_mass, equal_nan=True)


@pytest.fixture
def engines(monkeypatch):
    """The engines that a call makes."""
    made, original = [], redundancy.plain_engine
    monkeypatch.setattr(redundancy, "plain_engine", lambda pipe: made.append(original(pipe)) or made[-1])
    return made


class _StopError(Exception):
    pass


def test_nothing_is_left_hanging(pipe, data, engines):
    def stop(stage, done, total):
        assert (stage, done, total) == ("analyzing", 2, 3)
        assert all(module._forward_pre_hooks for layer in engines[0].layers for module in (layer.qkv, layer.fc2))
        raise _StopError

    with pytest.raises(_StopError):
        measure_redundancy(pipe, data=data, batch_size=2, progress=stop)
    measure_redundancy(pipe, data=data)
    assert len(engines) == 2
    for engine in engines:
        assert not any(module._forward_pre_hooks for module in engine.modules())
        assert all(layer.observer is None for layer in engine.layers)


def test_a_plan_is_left_aside_and_in_force(tiny, data, report):
    pipe = tiny.pipeline()
    config = pipe.transformer.config
    weights = weights_fingerprint(pipe.transformer)
    apply_(pipe, CompressionPlan(model=config, weights=weights, windows=tiny.windows(config)))
    plan, engine = pipe.plan, pipe.engine
    found = measure_redundancy(pipe, data=data, batch_size=2)
    assert np.array_equal(found.segment_mass, report.segment_mass, equal_nan=True)
    assert pipe.plan is plan
    assert pipe.engine is engine


def test_misuse(tiny, pipe, data):
    tokens, labels = data
    for given, error, words in [
        ((tokens[:0], labels[:0]), ShapeError, "n ≥ 1"),
        ((tokens[:, :9], labels), ShapeError, r"\(n, 130\)"),
        ((tokens, labels[:2]), ShapeError, "n labels"),
        ((tokens.float(), labels), DtypeError, "integers"),
        ((tokens + 24, labels), ArgumentError, "0..23"),
    ]:
        with pytest.raises(error, match=words):
            measure_redundancy(pipe, data=given)
    for name in ("num_images", "batch_size"):
        with pytest.raises(ConfigError, match=f"{name}: .*got 0"):
            measure_redundancy(pipe, **{name: 0})
    freed = tiny.pipeline()
    config, weights = freed.transformer.config, weights_fingerprint(freed.transformer)
    precision = precision_plan(config, real=True)
    apply_(freed, CompressionPlan(model=config, weights=weights, precision=precision), keep_original=False)
    with pytest.raises(ConfigError, match="weights were freed"):
        measure_redundancy(freed, data=data)
