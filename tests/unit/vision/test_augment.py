import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, DtypeError, ShapeError  # noqa: E402
from sparing.vision import EpochSampler, random_crop, random_flip, stream_generator, to_float  # noqa: E402

IMAGES = torch.arange(64 * 3 * 6 * 5, dtype=torch.int32).remainder(251).to(torch.uint8).reshape(64, 3, 6, 5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_image_is_flipped_or_not():
    flipped = random_flip(IMAGES, generator())
    is_flipped = (flipped == IMAGES.flip(-1)).all((1, 2, 3))
    is_same = (flipped == IMAGES).all((1, 2, 3))
    assert (is_flipped ^ is_same).all()
    assert 15 < is_flipped.sum() < 49
    assert flipped.dtype == torch.uint8
    assert torch.equal(random_flip(IMAGES, generator(), probability=0), IMAGES)
    assert torch.equal(random_flip(IMAGES, generator(), probability=1), IMAGES.flip(-1))
    assert torch.equal(random_flip(IMAGES, generator()), flipped)


@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_each_crop_is_a_window_of_the_padded_image(mode):
    padding = 2
    options = {"mode": "reflect"} if mode == "reflect" else {"mode": "constant"}
    padded = np.pad(IMAGES.numpy(), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2), **options)
    cropped = random_crop(IMAGES, generator(), padding=padding, mode=mode).numpy()
    places = set()
    for image, source in zip(cropped, padded, strict=True):
        found = {
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(source[:, top : top + 6, left : left + 5], image)
        }
        assert len(found) == 1
        places |= found
    assert len(places) > 15
    assert {top for top, _ in places} == {left for _, left in places} == set(range(5))


def test_crops_repeat_with_the_seed_and_padding_0_changes_nothing():
    assert torch.equal(random_crop(IMAGES, generator()), random_crop(IMAGES, generator()))
    assert not torch.equal(random_crop(IMAGES, generator()), random_crop(IMAGES, generator(1)))
    assert torch.equal(random_crop(IMAGES, generator(), padding=0), IMAGES)


def test_bad_arguments():
    for function in (random_crop, random_flip):
        with pytest.raises(DtypeError, match=r"uint8 tensor, got torch\.float32"):
            function(IMAGES.float(), generator())
        with pytest.raises(DtypeError, match="got uint8"):
            function(IMAGES.numpy(), generator())
        with pytest.raises(ShapeError):
            function(IMAGES[0], generator())
    with pytest.raises(ArgumentError, match="padding: expected 0 or more, and with 'reflect' less than 5, got 5"):
        random_crop(IMAGES, generator(), padding=5)
    assert random_crop(IMAGES, generator(), padding=9, mode="zero").shape == IMAGES.shape
    with pytest.raises(ArgumentError, match="mode"):
        random_crop(IMAGES, generator(), mode="edge")
    with pytest.raises(ArgumentError, match="probability"):
        random_flip(IMAGES, generator(), probability=1.5)


def test_to_float():
    for images in (torch.tensor([0, 51, 255], dtype=torch.uint8), np.array([0, 51, 255], np.uint8)):
        if isinstance(images, np.ndarray):
            images.flags.writeable = False
        out = to_float(images, "cpu")
        assert out.dtype == torch.float32
        assert out.tolist() == pytest.approx([-1, -0.6, 1])
        assert out[0] == -1
        assert out[2] == 1
    for bad in (torch.zeros(2), np.zeros(2), [0]):
        with pytest.raises(DtypeError):
            to_float(bad)


def test_each_epoch_is_a_permutation_without_its_last_partial_batch():
    sampler = EpochSampler(11, 3, seed=5)
    assert sampler.steps_per_epoch == 3
    epochs = [torch.cat([sampler.indices(3 * epoch + i) for i in range(3)]).tolist() for epoch in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 9
        assert set(epoch) <= set(range(11))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_step_decides_its_batch_alone():
    walked, fresh = EpochSampler(20, 4, seed=1), EpochSampler(20, 4, seed=1)
    batches = [walked.indices(step) for step in range(15)]
    assert torch.equal(fresh.indices(13), batches[13])
    assert torch.equal(walked.indices(2), batches[2])
    walked.indices(2).zero_()
    assert torch.equal(walked.indices(2), batches[2])
    other = EpochSampler(20, 4, seed=2)
    assert any(not torch.equal(other.indices(step), batches[step]) for step in range(5))


def test_bad_samplers():
    for batch_size in (0, 6):
        with pytest.raises(ArgumentError, match="batch_size: expected 1 to the 5 images there are"):
            EpochSampler(5, batch_size, seed=0)
    with pytest.raises(ArgumentError, match="seed"):
        EpochSampler(5, 2, seed=-1)
    with pytest.raises(ArgumentError, match="step"):
        EpochSampler(5, 2, seed=0).indices(-1)


def test_streams_differ_and_repeat():
    seeds = [(0,), (0, 0), (0, 1), (1, 0), (0, 1, 0)]
    first = [stream_generator(*seed).initial_seed() for seed in seeds]
    assert len(set(first)) == len(seeds)
    assert first == [stream_generator(*seed).initial_seed() for seed in seeds]
    with pytest.raises(ArgumentError):
        stream_generator(0, -1)
