"""Searches on a few images: costs by counting, archives that go on, trials that are no more than the archive."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

from sparing.errors import ArgumentError, BusyError, ConfigError, FormatError, NonFiniteError  # noqa: E402
from sparing.faults import BitBias, StuckAt  # noqa: E402
from sparing.nas.archive import Evaluated, SearchFolder, evaluated_front, read_archive  # noqa: E402
from sparing.nas.cost import network_cost  # noqa: E402
from sparing.nas.cost_table import CostTable, widest_channels  # noqa: E402
from sparing.nas.derive import derive, load_search_result  # noqa: E402
from sparing.nas.images import downscaled, parted  # noqa: E402
from sparing.nas.search import run_search  # noqa: E402
from sparing.nas.search_config import preset_config  # noqa: E402
from sparing.nas.space import SearchSpace  # noqa: E402
from sparing.vision import ImageDataset  # noqa: E402

SPACE = SearchSpace("feature")


class StopError(Exception):
    """What a callback raises to stop."""


def data(n=100):
    rng = np.random.default_rng(0)
    return ImageDataset(
        rng.integers(0, 256, (n, 3, 8, 8)).astype(np.uint8), rng.integers(0, 3, n), ("a", "b", "c"), "x"
    )


def tiny_config(**settings):
    return preset_config(
        "demo",
        channels=2,
        evaluations=5,
        **{
            "final_draws": 1,
            "supernet": {"epochs": 1, "batch_size": 40},
            "evaluation": {"images": 20, "draws": 1, "calibration_images": 16},
            "controller": {"steps": 2, "samples": 3, "batch_size": 10, "hidden": 8},
            "evolution": {"population": 4},
            **settings,
        },
    )


def record(number, clean, faulty, macs, parameters=10, stage="search"):
    genotype = SPACE.random(number)
    return Evaluated(
        number=number,
        stage=stage,
        step=3,
        vector=tuple(SPACE.encode(genotype).tolist()),
        genotype=genotype,
        num_cells=3,
        channels=2,
        num_macs=macs,
        num_parameters=parameters,
        clean_accuracy=clean,
        faulty_accuracies=(faulty,),
        reward=(clean + faulty) / 2,
    )


@pytest.mark.parametrize(("space", "channels", "cells", "size"), [("feature", 4, 5, 17), ("weight", 3, 3, 8)])
def test_the_table_counts_what_the_network_has(space, channels, cells, size):
    searched = SearchSpace(space)
    table = CostTable(searched, channels=channels, num_cells=cells, image_size=size, num_classes=7)
    for seed in range(4):
        genotype = searched.random(seed)
        counted = network_cost(genotype, channels=channels, num_cells=cells, image_size=size, num_classes=7)
        assert table(searched.encode(genotype)) == counted


def test_a_search_and_one_that_is_called_again(tmp_path):
    stages = []
    result = run_search(data(), config=tiny_config(), folder=tmp_path / "s", progress=lambda *a: stages.append(a))
    records = read_archive(tmp_path / "s")
    assert [r.number for r in records] == list(range(5))
    assert len({r.vector for r in records}) == 5
    assert all(r.step == result.supernet_steps == 2 for r in records)
    assert all(SPACE.decode(r.vector) == r.genotype for r in records)
    assert {stage for stage, done, total in stages if done == total} == {"supernet", "evaluations", "finalists"}
    best = max(result.finalists, key=lambda one: one.reward)
    assert result.genotype == records[best.number].genotype
    assert load_search_result(tmp_path / "s") == result
    # A line that was torn, and one that was lost: evaluated again.
    file = tmp_path / "s" / "archive.jsonl"
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:50])
    assert run_search(data(), config=tiny_config(), folder=tmp_path / "s") == result
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "limits", [{"max_macs": 500_000}, {"max_parameters": 40_000}, {"max_macs": 10**6, "max_parameters": 40_000}]
)
@pytest.mark.parametrize("space", ["feature", "weight"])
def test_the_widest_network_within_a_budget(space, limits):
    genotype = SearchSpace(space).random(5)
    sizes = {"num_cells": 3, "image_size": 8, "num_classes": 3}
    channels = widest_channels(genotype, **limits, **sizes)

    def fits(channels):
        cost = network_cost(genotype, channels=channels, **sizes)
        values = {"max_macs": cost.num_macs, "max_parameters": cost.num_parameters}
        return all(values[name] <= limit for name, limit in limits.items())

    assert channels > 2
    assert fits(channels)
    assert not fits(channels + 1)


def test_no_width_is_within_no_budget():
    genotype = SPACE.random(0)
    with pytest.raises(ArgumentError, match="expected a limit"):
        widest_channels(genotype)
    with pytest.raises(ArgumentError, match="2 channels, got 5 and None"):
        widest_channels(genotype, max_macs=5)


HALVING = {"candidates": (4, 2), "num_cells": (3, 4), "epochs": (0.5, 1), "draws": 3, "training": {"batch_size": 10}}


def test_halving_trains_the_better_half_for_longer(tmp_path):
    stages = []
    config = tiny_config(mode="halving", max_macs=200_000, halving=HALVING)
    result = run_search(data(), config=config, folder=tmp_path / "s", progress=lambda *a: stages.append(a))
    records = read_archive(tmp_path / "s")
    assert [r.step for r in records] == [4] * 4 + [8] * 2
    assert all(len(r.faulty_accuracies) == 3 for r in records)
    first, last = records[:4], records[4:]
    kept = sorted(first, key=lambda one: (-one.reward, one.num_macs))[:2]
    assert [r.vector for r in last] == [r.vector for r in kept]
    for one in records:
        limit = {"max_macs": 200_000, "image_size": 8, "num_cells": one.num_cells, "num_classes": 3}
        assert one.channels == widest_channels(one.genotype, **limit)
        assert one.num_macs <= 200_000
    assert len({r.channels for r in records}) > 1
    assert {r.num_cells for r in records} == {3, 4}
    assert stages == [("round 1 of 2", n, 4) for n in (1, 2, 3, 4)] + [("round 2 of 2", n, 2) for n in (1, 2)]
    best = min(last, key=lambda one: (-one.reward, one.num_macs))
    assert result.genotype == best.genotype
    assert (result.num_cells, result.channels) == (best.num_cells, best.channels)
    assert (result.num_evaluated, result.supernet_steps) == (4, 0)
    assert set(result.front) <= {4, 5}
    assert load_search_result(tmp_path / "s") == result
    assert not (tmp_path / "s" / "trainings").exists()
    # A lost line is trained again, and nothing else.
    file = tmp_path / "s" / "archive.jsonl"
    whole = file.read_bytes()
    file.write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))
    assert run_search(data(), config=config, folder=tmp_path / "s") == result
    assert file.read_bytes() == whole


def test_halving_trains_within_the_weight_limit(tmp_path):
    def judged(limit):
        config = tiny_config(mode="halving", halving={**HALVING, "candidates": (3, 1), "weight_limit": limit})
        run_search(data(), config=config, folder=tmp_path / str(limit))
        return [record.faulty_accuracies for record in read_archive(tmp_path / str(limit))]

    assert judged(1e-3) != judged(None)  # nothing is learned
    assert judged(100.0) == judged(None)


def test_halving_wants_rounds_of_growing_length(tmp_path):
    for wrong in ({"candidates": (2, 4)}, {"epochs": (1, 1)}, {"epochs": (1, 2.5)}, {"candidates": (2,)}):
        with pytest.raises(ConfigError, match="halving"):
            tiny_config(mode="halving", halving={**HALVING, **wrong})
    close = tiny_config(mode="halving", halving={**HALVING, "epochs": (0.9, 1), "training": {"batch_size": 50}})
    with pytest.raises(ArgumentError, match="ever more steps"):
        run_search(data(), config=close, folder=tmp_path / "a")
    for wrong, word in (({"epochs": (0.01, 1)}, "images a step"), ({"training": {"crop_padding": 8}}, "crop_padding")):
        with pytest.raises(ArgumentError, match=word):
            config = tiny_config(mode="halving", halving={**HALVING, **wrong})
            run_search(data(), config=config, folder=tmp_path / "c")
    small = tiny_config(mode="halving", max_macs=10, halving=HALVING)
    with pytest.raises(ConfigError, match="room for 4 architectures, found 0"):
        run_search(data(), config=small, folder=tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_a_round_that_diverges_is_no_result(tmp_path):
    wild = {**HALVING, "training": {"batch_size": 10, "learning_rate": 1e30, "warmup": 0.0}}
    with pytest.raises(NonFiniteError, match="every network of round 1 diverged"):
        run_search(data(), config=tiny_config(mode="halving", halving=wild), folder=tmp_path / "s")
    found = read_archive(tmp_path / "s")
    assert len(found) == 4
    assert all(r.clean_accuracy == r.faulty_accuracy == 0 for r in found)
    assert not (tmp_path / "s" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["evolution", "halving"])
def test_workers_do_not_change_what_is_found(tmp_path, mode):
    config = tiny_config(mode=mode, halving=HALVING)
    alone = run_search(data(), config=config, folder=tmp_path / "one")
    together = run_search(data(), config=config, folder=tmp_path / "two", workers=2)
    assert together == alone
    files = [tmp_path / name / "archive.jsonl" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_policy_gradient_that_was_stopped_goes_on_alike(tmp_path):
    config = tiny_config(
        mode="policy-gradient", fault=StuckAt(form="bit"), space="feature", supernet={"epochs": 2, "batch_size": 40}
    )
    result = run_search(data(), config=config, folder=tmp_path / "whole")

    def stop(stage, done, _total):
        if stage == "policy" and done == 3:
            raise StopError

    with pytest.raises(StopError):
        run_search(data(), config=config, folder=tmp_path / "parts", progress=stop)
    assert run_search(data(), config=config, folder=tmp_path / "parts") == result
    first, second = (tmp_path / name / "archive.jsonl" for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()
    assert [r.stage for r in read_archive(tmp_path / "whole")][:5] == ["policy"] * 4 + ["search"]


def test_other_settings_and_other_images_are_refused_by_name(tmp_path):
    def stop(*_):
        raise StopError

    with pytest.raises(StopError):
        run_search(data(), config=tiny_config(), folder=tmp_path, progress=stop)
    with pytest.raises(ConfigError, match=r"settings.supernet.loss_share: saved 0.5, now 0.25"):
        changed = tiny_config(supernet={"epochs": 1, "batch_size": 40, "loss_share": 0.25})
        run_search(data(), config=changed, folder=tmp_path)
    with pytest.raises(ConfigError, match="images_crc32"):
        run_search(data(99), config=tiny_config(), folder=tmp_path)


def test_the_budget_is_kept(tmp_path):
    costs = sorted(
        CostTable(SPACE, channels=2, num_cells=3, image_size=8, num_classes=3)(SPACE.encode(SPACE.random(s))).num_macs
        for s in range(30)
    )
    result = run_search(data(), config=tiny_config(max_macs=costs[10]), folder=tmp_path / "s")
    assert all(r.num_macs <= costs[10] for r in read_archive(tmp_path / "s"))
    assert result.num_macs <= costs[10]
    with pytest.raises(ConfigError, match="max_macs"):
        run_search(data(), config=tiny_config(max_macs=10), folder=tmp_path / "none")


def test_trials_are_those_of_the_archive_however_often(tmp_path):
    optuna = pytest.importorskip("optuna", reason="needs sparing[nas]")
    from sparing.nas.trials import TrialJournal

    records = [record(0, 0.5, 0.4, 100), record(1, 0.3, 0.2, 50, stage="policy"), record(2, 0.6, 0.5, 70)]
    path = tmp_path / "trials.journal"
    TrialJournal(path, num_options=SPACE.num_options).sync(records[:1])
    (tmp_path / "trials.journal.lock").symlink_to(path)  # what a killed writer leaves
    with path.open("ab") as file:
        file.write(b'{"torn')
    journal = TrialJournal(path, num_options=SPACE.num_options)
    journal.sync(records)
    journal.sync(records)

    def trials():
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
        return optuna.load_study(study_name="sparing nas search", storage=storage).trials

    assert [t.values for t in trials()] == [[0.5, 0.4, 100.0, 10.0], [0.6, 0.5, 70.0, 10.0]]
    assert [t.user_attrs["archive_number"] for t in trials()] == [0, 2]
    assert trials()[1].params["site 1"] == records[2].vector[1]
    path.write_bytes(b"no journal\nat all\n")
    TrialJournal(path, num_options=SPACE.num_options).sync(records)
    assert len(trials()) == 2
    TrialJournal(path, num_options=SPACE.num_options).sync(records[2:])
    assert len(trials()) == 1


def test_front_and_choice():
    records = [
        record(0, 0.5, 0.4, 100),
        record(1, 0.5, 0.4, 90),
        record(2, 0.4, 0.6, 200),
        record(3, 0.9, 0.9, 1, stage="policy"),
        record(4, 0.5, 0.4, 90),
    ]
    assert [one.number for one in evaluated_front(records)] == [2, 1]
    assert [one.number for one in derive(records, count=3)] == [2, 1, 4]
    assert [one.number for one in derive(records, max_macs=100)] == [1]
    with pytest.raises(ArgumentError, match="none of the 4"):
        derive(records, max_macs=5)


def test_the_folder_refuses_what_it_should(tmp_path):
    with SearchFolder(tmp_path / "s", {"a": 1}) as folder:
        folder.append(record(0, 0.5, 0.4, 100))
        with pytest.raises(ArgumentError, match="number 1"):
            folder.append(record(0, 0.5, 0.4, 100))
        with pytest.raises(BusyError):
            SearchFolder(tmp_path / "s", {"a": 1})
        folder.append(record(1, 0.5, 0.4, 100))
    file = tmp_path / "s" / "archive.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"nonsense\n" + lines[1])
    with pytest.raises(FormatError, match="line 1 was altered"):
        SearchFolder(tmp_path / "s", {"a": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FormatError, match="expected an empty folder"):
        SearchFolder(tmp_path / "other", {"a": 1})
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    with pytest.raises(FormatError, match="not the folder of a search"):
        read_archive(tmp_path / "other")


def test_images_are_averaged_and_parted():
    dataset = ImageDataset(np.arange(2 * 3 * 16, dtype=np.uint8).reshape(2, 3, 4, 4), np.array([0, 1]), ("a", "b"), "x")
    small = downscaled(dataset, 2).images
    assert small[1, 2, 1, 0] == round(dataset.images[1, 2, 2:, :2].mean() + 1e-9)
    assert downscaled(dataset, 4) is dataset
    with pytest.raises(ArgumentError, match="image_size"):
        downscaled(dataset, 3)
    ones, others = parted(data(), 0.8, seed=3)
    assert (len(ones), len(others)) == (80, 20)
    whole = sorted(image.tobytes() for part in (ones, others) for image in part.images)
    assert whole == sorted(image.tobytes() for image in data().images)
    with pytest.raises(ArgumentError, match="part"):
        parted(dataset, 0.1, seed=0)


def test_presets():
    published = preset_config("published")
    assert (published.channels, published.num_cells, published.supernet.epochs) == (20, 8, 100)
    assert published.evaluation.reward_share == preset_config("cpu", fault=BitBias(p_m=1e-4)).evaluation.reward_share
    assert preset_config("published", fault=StuckAt(form="bit")).evaluation.reward_share == 0.2
    assert json.loads(preset_config("cpu").model_dump_json())["evolution"]["population"] == 20
    assert preset_config("published").evolution.population == 50
    training = preset_config("cpu", halving={"training": {"flip": False}}).halving.training
    assert (training.flip, training.batch_size, training.weight_decay) == (False, 64, 4e-5)
    assert preset_config("cpu").halving.num_cells == (3, 4, 5)
    assert preset_config("cpu", num_cells=8).halving.num_cells is None
    with pytest.raises(ArgumentError, match="cpu"):
        preset_config("tiny")
    with pytest.raises(ConfigError, match=r"supernet.epochs"):
        preset_config("cpu", supernet={"epochs": 0})
