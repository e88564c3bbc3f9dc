"""The final training of a genotype: it goes on with the same settings only."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[nas]")
pytest.importorskip("safetensors", reason="needs sparing[nas]")

from sparing.errors import ConfigError  # noqa: E402
from sparing.nas import final_config, load_genotype, train_genotype  # noqa: E402
from sparing.nas.final_training import trained_network  # noqa: E402
from sparing.vision import ImageDataset  # noqa: E402


class StopError(Exception):
    """What a callback raises to stop."""


def data(seed):
    rng = np.random.default_rng(seed)
    return ImageDataset(rng.integers(0, 256, (16, 3, 8, 8)).astype(np.uint8), np.arange(16) % 2, ("a", "b"), "x")


@pytest.mark.parametrize("limit", [None, 0.03])
def test_weights_stay_within_the_limit(tmp_path, limit):
    config = final_config(
        "demo", channels=2, draws=1, weight_limit=limit, training={"epochs": 1, "batch_size": 8, "seed": 1}
    )
    model, _ = trained_network(
        load_genotype("w-ftt-net"), data(0), config=config, device=torch.device("cpu"), checkpoint_folder=tmp_path
    )
    largest = max(weight.abs().max().item() for weight in model.parameters() if weight.ndim > 1)
    assert (largest <= 0.03) == (limit is not None)


def test_other_settings_are_refused(tmp_path):
    def stop(_, done, __):
        if done == 3:
            raise StopError

    def go(**settings):
        config = final_config("demo", channels=2, draws=1, training={"epochs": 2, "batch_size": 8}, **settings)
        return train_genotype(
            load_genotype("w-ftt-net"), data(0), data(1), config=config, folder=tmp_path, progress=stop
        )

    with pytest.raises(StopError):
        go()
    with pytest.raises(ConfigError, match=r"step\.dropout: saved 0\.1, now 0\.5"):
        go(dropout=0.5)
    with pytest.raises(ConfigError, match=r"step\.calibration_images: saved 256, now 8"):
        go(calibration_images=8)
    with pytest.raises(StopError):
        go()
