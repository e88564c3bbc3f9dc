"""Measures of drawn images against closed forms and brute force."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sparing.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError  # noqa: E402
from sparing.var.apply import apply_  # noqa: E402
from sparing.var.pipeline import weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, SharingPlan  # noqa: E402
from sparing.var.quality import (  # noqa: E402
    Samples,
    cross_entropy,
    draw_samples,
    frechet_distance,
    measure_quality,
    precision_recall,
)


def normal(seed, n, d):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def with_moments(x, mean, deviations):
    """Moves features to exactly this mean and these uncorrelated deviations."""
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False))
    return x @ vectors / np.sqrt(values) * deviations + mean


# --- Fréchet distance


def test_diagonal_gaussians_have_a_closed_form():
    rng = np.random.default_rng(0)
    means, deviations = rng.standard_normal((2, 7)), rng.uniform(0.2, 3, (2, 7))
    a, b = (with_moments(normal(i, 50 + i, 7), means[i], deviations[i]) for i in (0, 1))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_one_feature():
    a, b = normal(0, 30, 1), 3 * normal(1, 40, 1) + 2
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-4)


@given(seed=st.integers(0, 1000), d=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_the_root_of_the_product(seed, d):
    scipy_linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal((d + 20, d)) @ rng.standard_normal((d, d)) + rng.standard_normal(d) for _ in range(2))
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = scipy_linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("n", [2, 5, 64])
def test_equal_sets(n):
    a = normal(0, n, 32)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(a, a) >= 0


def test_fewer_images_than_features():
    # Both in a plane of 64 dimensions, where the distance is that of the plane.
    plane = np.linalg.qr(normal(9, 64, 2).astype(np.float64))[0]
    a, b = normal(0, 10, 2).astype(np.float64), 2 * normal(1, 12, 2).astype(np.float64) + 1
    assert frechet_distance(a @ plane.T, b @ plane.T) == pytest.approx(frechet_distance(a, b), rel=1e-6)
    assert frechet_distance(np.ones((5, 8)), np.zeros((5, 8))) == pytest.approx(8)


def test_far_from_zero():
    a, b = normal(0, 200, 4), normal(1, 200, 4)
    assert frechet_distance(a + 1000, b + 1000) == pytest.approx(frechet_distance(a, b), rel=1e-2)


@pytest.mark.parametrize(
    ("a", "b", "error", "words"),
    [
        (np.zeros((1, 4)), np.zeros((5, 4)), ShapeError, r"a: expected \(n ≥ 2, d\), got \(1, 4\)"),
        (np.zeros(4), np.zeros((5, 4)), ShapeError, r"a: expected \(n ≥ 2, d\), got \(4,\)"),
        (np.zeros((5, 4)), np.zeros((1, 4)), ShapeError, r"b: expected \(n ≥ 2, 4\), got \(1, 4\)"),
        (np.zeros((5, 4)), np.zeros((5, 3)), ShapeError, r"b: expected \(n ≥ 2, 4\), got \(5, 3\)"),
        (np.zeros((5, 4)), np.full((5, 4), np.nan), NonFiniteError, "b: features"),
        (np.full((5, 4), np.inf), np.zeros((5, 4)), NonFiniteError, "a: features"),
    ],
)
def test_features_that_do_not_fit(a, b, error, words):
    with pytest.raises(error, match=words):
        frechet_distance(a, b)
    with pytest.raises(error, match=words.replace("a:", "real:").replace("b:", "drawn:")):
        precision_recall(a, b)


# --- precision and recall


def brute_force(real, drawn, neighbours):
    def distances(a, b):
        return np.sqrt(((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(-1))

    def share(of, among):
        radii = np.sort(distances(among, among), 1)[:, neighbours]
        return (distances(of, among) <= radii).any(1).mean()

    return share(drawn, real), share(real, drawn)


@pytest.mark.parametrize("offset", [0, 300])
@pytest.mark.parametrize(("n", "m", "neighbours", "chunk"), [(40, 60, 3, 1000), (90, 30, 1, 7), (6, 5, 4, 4)])
def test_by_brute_force(n, m, neighbours, chunk, offset):
    real, drawn = normal(0, n, 16) + offset, np.float32(0.8) * normal(1, m, 16) + offset + np.float32(0.4)
    found = precision_recall(real, drawn, neighbours=neighbours, chunk=chunk)
    assert found == pytest.approx(brute_force(real, drawn, neighbours), abs=1e-6)
    assert precision_recall(drawn, real, neighbours=neighbours) == pytest.approx(found[::-1], abs=1e-6)


def test_extremes():
    real = normal(0, 50, 8)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    one = np.repeat(real[:1], 30, 0)
    precision, recall = precision_recall(real, one)
    assert precision == 1, "the one image is a real one"
    assert recall == pytest.approx(1 / 50), "and stands for no other"
    two_clusters = np.concatenate([real, real + 100])
    assert precision_recall(two_clusters, real) == (1, 0.5)


def test_too_few_images():
    with pytest.raises(ArgumentError, match="expected more than 3 images each, got 3 and 9"):
        precision_recall(normal(0, 3, 4), normal(0, 9, 4))
    with pytest.raises(ArgumentError, match="neighbours, chunk: expected at least 1, got 0 and 1000"):
        precision_recall(normal(0, 9, 4), normal(0, 9, 4), neighbours=0)


# --- drawing


@pytest.fixture(scope="module")
def pipe(tiny):
    return tiny.pipeline()


def test_samples(pipe):
    calls = []
    samples = draw_samples(pipe, 7, seed=3, batch_size=3, progress=lambda *call: calls.append(call))
    assert samples.images.shape == (7, 3, 16, 16)
    assert samples.images.dtype == np.uint8
    assert samples.labels.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert samples.labels.dtype == np.int64
    assert calls == [("drawing", 3, 7), ("drawing", 6, 7), ("drawing", 7, 7)]


def test_samples_depend_on_seed_and_batch_size_only(tiny, pipe):
    first = draw_samples(pipe, 7, seed=3, batch_size=3).images
    torch.manual_seed(5)
    np.random.default_rng(5)
    pipe([0], seed=9)
    assert np.array_equal(draw_samples(pipe, 7, seed=3, batch_size=3).images, first)
    assert np.array_equal(draw_samples(tiny.pipeline(), 7, seed=3, batch_size=3).images, first)
    assert np.array_equal(draw_samples(pipe, 6, seed=3, batch_size=3).images, first[:6]), "more images later"
    others = [{"seed": 4}, {"batch_size": 2}, {"guidance_scale": 3.0}, {"top_k": 2}, {"top_p": 0.3}]
    for changes in others:
        other = draw_samples(pipe, 7, **{"seed": 3, "batch_size": 3, **changes}).images
        assert not np.array_equal(other, first), changes
    assert not np.array_equal(first[:2], first[5:]), "batches of their own"


def test_two_pipelines_are_compared_on_the_same_seeds(tiny, pipe):
    other = tiny.pipeline()
    model = other.transformer.config
    dense = CompressionPlan(model=model, weights=weights_fingerprint(other.transformer), windows=((None,) * 6,) * 2)
    apply_(other, dense)
    assert np.array_equal(draw_samples(other, 5).images, draw_samples(pipe, 5).images)


def test_drawing_nothing(pipe):
    with pytest.raises(ArgumentError, match="expected at least 1, got 0 and 100"):
        draw_samples(pipe, 0)
    with pytest.raises(ArgumentError, match="expected at least 1, got 5 and 0"):
        draw_samples(pipe, 5, batch_size=0)
    with pytest.raises(ArgumentError, match="top_p"):
        draw_samples(pipe, 1, top_p=0.0)


# --- the report


def test_a_report():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 5
    samples = Samples(rng.integers(0, 256, (40, 3, 4, 4), dtype=np.uint8), labels)
    features, real = normal(1, 40, 6), normal(2, 50, 6)
    logits = np.eye(5)[np.where(np.arange(40) < 10, (labels + 1) % 5, labels)]
    seen = []

    def classify(images):
        seen.append(images)
        return logits, features

    report = measure_quality(samples, real, classify=classify, features="of a test")
    assert seen[0] is samples.images
    assert len(seen) == 1
    assert (report.num_samples, report.features, report.class_agreement) == (40, "of a test", 0.75)
    assert report.frechet == frechet_distance(real, features)
    assert (report.precision, report.recall) == precision_recall(real, features)
    few = measure_quality(samples, real, classify=classify, features="", num_neighbours_images=10)
    # Spread over all of them: a folder's images come class by class.
    spread = precision_recall(
        real[[0, 5, 10, 16, 21, 27, 32, 38, 43, 49]], features[[0, 4, 8, 13, 17, 21, 26, 30, 34, 39]]
    )
    assert (few.precision, few.recall) == spread
    assert few.frechet == report.frechet


# --- cross-entropy


@pytest.fixture(scope="module")
def data():
    return torch.randint(24, (5, 130), generator=torch.Generator().manual_seed(8)), torch.tensor([4, 0, 5, 1, 1])


@pytest.mark.parametrize("with_windows", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_cross_entropy_by_the_formulas(plain, tiny, data, with_windows, batch_size):
    pipe, (tokens, labels) = tiny.pipeline(), data
    config = pipe.transformer.config
    windows = tiny.windows(config) if with_windows else None
    if with_windows:
        plan = CompressionPlan(model=config, weights=weights_fingerprint(pipe.transformer), windows=windows)
        apply_(pipe, plan)
    split = np.split(tokens.numpy(), config.scale_starts[1:-1], 1)
    inputs = plain.next_inputs(plain.arrays(pipe.tokenizer.quantize), config.patch_nums, split)
    state = plain.arrays(pipe.transformer)
    logits = plain.logits(state, config.patch_nums, config.num_heads, labels.tolist(), inputs, windows=windows)
    nats = -np.log(np.take_along_axis(plain.softmax(logits), tokens.numpy()[..., None], 2))[..., 0]
    starts = config.scale_starts
    expected = [nats[:, a:b].mean() for a, b in itertools.pairwise(starts)]
    found = cross_entropy(pipe, tokens, labels, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.array_equal(found, cross_entropy(pipe, tokens.int(), labels, batch_size=batch_size))


def test_what_is_shared_across_guidance_does_not_show_in_the_cross_entropy(tiny, pipe, data):
    other = tiny.pipeline()
    sharing = SharingPlan(variant="output", first_scale=(0, 0))
    weights = weights_fingerprint(other.transformer)
    apply_(other, CompressionPlan(model=other.transformer.config, weights=weights, sharing=sharing))
    np.testing.assert_allclose(cross_entropy(other, *data), cross_entropy(pipe, *data), rtol=1e-6)


def test_cross_entropy_of_what_does_not_fit(pipe, data):
    tokens, labels = data
    with pytest.raises(ShapeError, match=r"tokens \(n, 130\)"):
        cross_entropy(pipe, tokens[:, :9], labels)
    with pytest.raises(ShapeError, match="n ≥ 1"):
        cross_entropy(pipe, tokens[:0], labels[:0])
    with pytest.raises(ArgumentError, match=r"0..23"):
        cross_entropy(pipe, tokens + 24, labels)
    with pytest.raises(DtypeError, match="integers"):
        cross_entropy(pipe, tokens.float(), labels)
    with pytest.raises(ArgumentError, match="batch_size"):
        cross_entropy(pipe, tokens, labels, batch_size=0)
