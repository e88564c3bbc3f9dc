"""Campaigns against a plain loop over draws. Workers, kills and torn files change no byte; others are refused."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

from sparing.errors import ArgumentError, BusyError, ConfigError, DtypeError, FormatError, ShapeError  # noqa: E402
from sparing.faults.campaign import sweep  # noqa: E402
from sparing.faults.campaign_records import CampaignFolder  # noqa: E402
from sparing.faults.campaign_result import CampaignConfig, CampaignResult, compare, load_campaign_result  # noqa: E402
from sparing.faults.hardening import clip_ranges_, remove_range_clips_  # noqa: E402
from sparing.faults.injection import inject  # noqa: E402
from sparing.faults.models import BitBias, BitFlip, GaussianNoise, StuckAt  # noqa: E402
from sparing.faults.normalization import recalibrated_norms  # noqa: E402
from sparing.runs import InProcessExecutor  # noqa: E402

FAULT = StuckAt(form="bit")
RATES = [0, 0.02, 0.1]
CONFIG = CampaignConfig(min_draws=3, max_draws=6, half_width=0.04, seed=5)
NAMES = ["campaign.json", "clean.sparing", "draws.jsonl", "result.json"]

NETWORK = """
import torch
from torch import nn
from sparing.faults.fixed_point import fixed_point_

def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=2),
            nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4),
        )
        images = torch.randn(40, 3, 6, 6)
    model.eval()
    with torch.no_grad():
        model[7].bias -= model(images).mean(0)
        labels = model(images).argmax(1)
    fixed_point_(model, images)
    return model, [(images[:24], labels[:24]), (images[24:], labels[24:])]
"""
exec(NETWORK)


@pytest.fixture
def made():
    return network()  # noqa: F821 - of the text above


def run(model, batches, **changes):
    arguments = {"fault": FAULT, "rates": RATES, "config": CONFIG, **changes}
    return sweep(model, batches, arguments.pop("fault"), arguments.pop("rates"), **arguments)


def by_hand(model, batches, fault, draw, seed=5, recalibration=None, **options):
    """Accuracy, share changed and hits of one draw."""
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        clean = model(images).argmax(1)
        block = contextlib.nullcontext() if recalibration is None else recalibrated_norms(model, recalibration)
        with inject(model, fault, seed=seed, draw=draw, **options) as injection, block:
            found = torch.cat([model(x).argmax(1) for x, _ in batches])
            hits = sum(injection.hits.values())
    return (found == labels).double().mean().item(), (found != clean).double().mean().item(), hits


def files(folder):
    return {name: (folder / name).read_bytes() for name in NAMES}


class TestSweep:
    @pytest.mark.parametrize(
        ("fault", "rates"),
        [
            (FAULT, [0.05]),
            (BitFlip(p=0, where="features"), [0.01]),
            (BitBias(p_m=0), [1e-3]),
            (GaussianNoise(sigma=0), [2]),
        ],
    )
    def test_is_a_loop_over_draws(self, made, fault, rates):
        result = run(*made, fault=fault, rates=rates, config=CONFIG.model_copy(update={"half_width": None}))
        (point,) = result.points
        draws = [by_hand(*made, fault.with_rate(rates[0]), draw) for draw in range(6)]
        accuracies, changed, hits = (np.array(column) for column in zip(*draws, strict=True))
        assert point.accuracies == tuple(accuracies)
        assert point.mean == pytest.approx(accuracies.mean())
        assert point.sd == pytest.approx(accuracies.std(ddof=1))
        assert point.sdc == pytest.approx(changed.mean())
        assert point.mean_hits == hits.mean() > 0
        assert point.quantile_05 == pytest.approx(np.quantile(accuracies, 0.05))
        assert point.sdc_low < point.sdc < point.sdc_high
        assert point.sd > 0

    def test_no_faults_need_no_draws(self, made):
        result = run(*made)
        none, *others = result.points
        assert (none.label, none.num_draws, none.accuracies, none.mean) == ("0", 0, (), result.clean_accuracy)
        assert (none.low, none.high, none.sdc) == (result.clean_accuracy, result.clean_accuracy, 0)
        assert all(CONFIG.min_draws <= point.num_draws <= CONFIG.max_draws for point in others)
        assert result.clean_accuracy > 0.8

    def test_a_sum_keeps_its_other_faults_at_a_rate_of_0(self, made):
        result = run(*made, fault=FAULT + BitFlip(p=0.02, where="features"), rates=[0])
        assert result.points[0].num_draws >= CONFIG.min_draws
        assert result.points[0].mean_hits > 0
        assert result.fault["faults"][0] == {"kind": "stuck-at", "form": "bit", "share_high": 0.163}

    def test_a_draw_is_the_same_at_every_rate_alone_or_not(self, made):
        one = run(*made, rates=[0.1]).points[0]
        assert run(*made).points[2] == one
        assert run(*made, rates=[0.1, 0.02]).points[0] == one

    def test_a_loader_is_read_once(self, made):
        model, batches = made
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        data = torch.utils.data.TensorDataset(images, labels)
        loader = torch.utils.data.DataLoader(data, batch_size=20, shuffle=True)
        found = run(model, loader)
        assert found.num_images == 40
        assert found.clean_accuracy == run(model, batches).clean_accuracy

    def test_sites_can_be_chosen(self, made):
        result = run(*made, rates=[0.1], include=["7"], config=CONFIG.model_copy(update={"max_draws": 3}))
        assert result.points[0].accuracies == tuple(
            by_hand(*made, FAULT.with_rate(0.1), draw, include=["7"])[0] for draw in range(3)
        )

    def test_normalizations_are_measured_anew_in_each_draw(self, made):
        images = [torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(k)) for k in range(2)]
        config = CONFIG.model_copy(update={"half_width": None})
        plain = run(*made, config=config)
        result = run(*made, config=config, recalibration=images)
        for rate, point in zip(RATES[1:], result.points[1:], strict=True):
            expected = [by_hand(*made, FAULT.with_rate(rate), draw, recalibration=images)[0] for draw in range(6)]
            assert point.accuracies == tuple(expected)
        # Without faults the network is what was given.
        assert (result.points[0], result.clean_accuracy) == (plain.points[0], plain.clean_accuracy)
        assert result.points[2].accuracies != plain.points[2].accuracies
        assert [one.rate for one in compare(result, plain)] == RATES

    def test_images_for_normalizations_are_checked_before_anything_is_written(self, made, tmp_path):
        model, batches = made
        for given, error, message in (
            ([], ArgumentError, "recalibration: expected at least one batch"),
            (torch.zeros(1, 3, 6, 6), ShapeError, "recalibration: expected batches of 2 or more"),
            ([0], DtypeError, "recalibration: expected a tensor"),
        ):
            with pytest.raises(error, match=message):
                run(model, batches, folder=tmp_path / "a", recalibration=given)
        model[1] = nn.Identity()
        with pytest.raises(ArgumentError, match="at least one batch normalization"):
            run(model, batches, folder=tmp_path / "a", recalibration=torch.zeros(4, 3, 6, 6))
        assert not (tmp_path / "a").exists()

    def test_hits_are_those_of_the_measured_images(self, made):
        fault = BitFlip(p=0, where="features")
        config = CONFIG.model_copy(update={"transient": False, "max_draws": 3, "half_width": None})
        images = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(1))
        plain = run(*made, fault=fault, rates=[0.05], config=config)
        again = run(*made, fault=fault, rates=[0.05], config=config, recalibration=images)
        assert again.points[0].mean_hits == plain.points[0].mean_hits > 0
        assert again.points[0].accuracies != plain.points[0].accuracies

    @pytest.mark.parametrize(
        ("fault", "transient"),
        [(BitBias(p_m=1e-3), None), (FAULT, True), (FAULT + BitFlip(p=0.1, where="features"), None)],
    )
    def test_nothing_is_measured_anew_under_faults_that_do_not_last(self, made, tmp_path, fault, transient):
        config = CONFIG.model_copy(update={"transient": transient})
        arguments = {"fault": fault, "config": config, "recalibration": torch.zeros(4, 3, 6, 6)}
        with pytest.raises(ArgumentError, match="recalibration: these faults are drawn anew"):
            run(*made, folder=tmp_path / "a", **arguments)
        assert not (tmp_path / "a").exists()
        run(*made, **arguments | {"config": CONFIG.model_copy(update={"transient": False, "max_draws": 3})})

    def test_workers_know_no_faults_around_them(self, made, tmp_path):
        model, batches = made
        with inject(model, BitFlip(p=0.01)):
            with pytest.raises(ArgumentError, match="workers: expected 1 for a model that is in a context of faults"):
                run(model, batches, folder=tmp_path / "a", workers=2)
            run(model, batches)
        assert not (tmp_path / "a").exists()

    def test_persistent_faults_of_features(self, made):
        config = CONFIG.model_copy(update={"transient": False, "max_draws": 3})
        result = run(*made, fault=BitFlip(p=0, where="features"), rates=[0.05], config=config)
        fault = BitFlip(p=0.05, where="features")
        expected = [by_hand(*made, fault, draw, transient=False)[0] for draw in range(3)]
        assert result.points[0].accuracies == tuple(expected)

    def test_the_model_is_as_it_was(self, made):
        model, batches = made
        model[3].train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        run(model, batches, workers=1)
        assert [module.training for module in model] == [i == 3 for i in range(8)]
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

        def stop(stage, done, total):
            if done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(model, batches, progress=stop)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert model[3].training

    def test_progress_only_rises_and_ends(self, made):
        seen = []
        result = run(*made, progress=lambda *call: seen.append(call))
        done = [call[1] for call in seen]
        assert done == list(range(sum(point.num_draws for point in result.points) + 1))
        assert all(call[0] == "draws" and call[1] <= call[2] for call in seen)
        assert [call[1] == call[2] for call in seen] == [False] * (len(seen) - 1) + [True]

    def test_what_is_no_number_is_never_right(self):
        class Broken(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(2, 2)

            def forward(self, x):
                logits = self.layer(x)
                logits[0] = torch.nan
                return logits

        batches = [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int32))]
        model = Broken()
        with torch.no_grad():
            model.layer.bias.copy_(torch.tensor([1.0, 0.0]))
        result = sweep(model, batches, StuckAt(), [0])
        assert result.clean_accuracy == pytest.approx(2 / 3)


class TestFolder:
    def test_holds_each_draw_in_order(self, made, tmp_path):
        result = run(*made, folder=tmp_path / "a" / "b")
        lines = [json.loads(line) for line in (tmp_path / "a" / "b" / "draws.jsonl").read_text().splitlines()]
        counts = {point.label: point.num_draws for point in result.points}
        order = [(label, draw) for draw in range(6) for label in ("0.02", "0.1") if draw < counts[label]]
        assert [(line["point"], line["draw"]) for line in lines] == order
        assert [line["correct"] / 40 for line in lines if line["point"] == "0.1"] == list(result.points[2].accuracies)
        assert load_campaign_result(tmp_path / "a" / "b") == result == run(*made)

    def test_a_finished_campaign_is_read(self, made, tmp_path, monkeypatch):
        first = run(*made, folder=tmp_path)
        before = files(tmp_path)
        monkeypatch.setattr("sparing.faults.campaign_runs._measure", None)
        assert run(*made, folder=tmp_path) == first
        assert files(tmp_path) == before

    def test_draws_ahead_of_the_rule_change_no_byte(self, made, tmp_path, monkeypatch):
        submitted = []

        class Ahead(InProcessExecutor):
            """Three workers, each with a copy of its own."""

            def __init__(self, shared):
                super().__init__(shared=pickle.loads(pickle.dumps(shared)))
                self.num_workers = 3

            def submit(self, fn, *args, **kwargs):
                submitted.append(args[1:])
                return super().submit(fn, *args, **kwargs)

        config = CONFIG.model_copy(update={"half_width": 0.3})
        result = run(*made, folder=tmp_path / "one", config=config)
        monkeypatch.setattr("sparing.faults.campaign_runs.open_executor", lambda workers, kind, shared: Ahead(shared))
        assert run(*made, folder=tmp_path / "two", config=config, workers=3) == result
        assert files(tmp_path / "one") == files(tmp_path / "two")
        assert len(submitted) > sum(point.num_draws for point in result.points)

    @pytest.mark.slow
    @pytest.mark.parametrize("recalibration", [None, torch.zeros(4, 3, 6, 6)])
    def test_workers_change_no_byte(self, made, tmp_path, recalibration):
        run(*made, folder=tmp_path / "one", recalibration=recalibration)
        run(*made, folder=tmp_path / "two", workers=2, recalibration=recalibration)
        assert files(tmp_path / "one") == files(tmp_path / "two")

    def test_torn_at_every_byte_of_the_last_line(self, made, tmp_path):
        run(*made, folder=tmp_path)
        before = files(tmp_path)
        draws = before["draws.jsonl"]
        start = draws.rstrip(b"\n").rindex(b"\n") + 1
        for end in [*range(start, len(draws), 7), len(draws) - 1]:
            (tmp_path / "draws.jsonl").write_bytes(draws[:end])
            run(*made, folder=tmp_path)
            assert files(tmp_path) == before
        (tmp_path / "draws.jsonl").write_bytes(draws[:start] + bytes(50))
        run(*made, folder=tmp_path)
        assert files(tmp_path) == before

    @pytest.mark.parametrize("change", ["middle", "order", "count", "more"])
    def test_altered_lines_are_refused(self, made, tmp_path, change):
        run(*made, folder=tmp_path)
        file = tmp_path / "draws.jsonl"
        lines = file.read_bytes().splitlines(keepends=True)
        if change == "middle":
            lines[1] = lines[1][:-9] + b"\n"
        elif change == "order":
            lines[0], lines[1] = lines[1], lines[0]
        elif change == "count":
            lines[0] = lines[0].replace(b'"correct":', b'"correct":9')
        else:
            lines += lines[-1:]
        file.write_bytes(b"".join(lines))
        with pytest.raises(FormatError, match=r"draws\.jsonl"):
            run(*made, folder=tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"rates": [0, 0.02]}, "points: saved .*'0.1'.*, now"),
            ({"fault": StuckAt(form="cell")}, "fault.form: saved 'bit', now 'cell'"),
            ({"fault": StuckAt(form="bit", share_high=0.2)}, "fault.share_high: saved 0.163, now 0.2"),
            ({"config": CONFIG.model_copy(update={"seed": 6})}, "config.seed: saved 5, now 6"),
            ({"config": CONFIG.model_copy(update={"half_width": None})}, "config.half_width: saved 0.04, now None"),
            ({"exclude": ["0"]}, r"sites.exclude: saved None, now \['0'\]"),
            ({"recalibration": torch.zeros(4, 3, 6, 6)}, "recalibration"),
        ],
    )
    def test_other_campaigns_are_refused(self, made, tmp_path, changes, message):
        run(*made, folder=tmp_path)
        before = files(tmp_path)
        with pytest.raises(ConfigError, match=f"holds another campaign: .*{message}"):
            run(*made, folder=tmp_path, **changes)
        assert files(tmp_path) == before

    def test_other_models_and_data_are_refused(self, made, tmp_path):
        model, batches = made
        run(model, batches, folder=tmp_path)
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        with pytest.raises(ConfigError, match=r"campaign: data\.batches: saved '24 \+ 16', now '2 × 20'\. Go on"):
            run(model, [(images[:20], labels[:20]), (images[20:], labels[20:])], folder=tmp_path)
        with pytest.raises(ConfigError, match=r"data\.labels_sha256"):
            run(model, [(x, (y + 1) % 4) for x, y in batches], folder=tmp_path)
        with torch.no_grad():
            model[7].bias[0] += 1
        with pytest.raises(ConfigError, match=r"campaign: model\.weights_sha256: saved '\w+', now '\w+'\. Go on"):
            run(model, batches, folder=tmp_path)
        with pytest.raises(ConfigError, match=r"model\.layout_sha256"):
            run(nn.Sequential(*model, nn.Identity(), nn.Linear(4, 4)), batches, folder=tmp_path)

    def test_other_modules_with_the_same_weights_are_refused(self, made, tmp_path):
        model, batches = made
        run(model, batches, folder=tmp_path / "relu")
        model[4] = nn.Hardtanh(-0.1, 0.1)
        message = r"modules\.4: saved 'ReLU\(\)', now 'Hardtanh\(min_val=-0\.1, max_val=0\.1\)'"
        with pytest.raises(ConfigError, match=message):
            run(model, batches, folder=tmp_path / "relu")
        for beyond in ("bound", "zero"):
            clip_ranges_(model, batches[0][0], beyond=beyond)
            if beyond == "bound":
                run(model, batches, folder=tmp_path / "clipped")
                remove_range_clips_(model)
        with pytest.raises(ConfigError, match=r"range_clip: saved \"RangeClip\(beyond='bound'\)\", now .*'zero'"):
            run(model, batches, folder=tmp_path / "clipped")

    def test_other_code_with_the_same_modules_is_refused(self, made, tmp_path):
        class Net(nn.Module):
            def __init__(self, inner, factor):
                super().__init__()
                self.inner, self.factor = inner, factor

            def forward(self, x):
                return self.factor * self.inner(x)

        model, batches = made
        before = run(Net(model, 1), batches, folder=tmp_path)
        assert run(Net(model, 1), batches, folder=tmp_path) == before
        with pytest.raises(ConfigError, match=r"a network that predicts other classes for [0-9.]+% of the images"):
            run(Net(model, -1), batches, folder=tmp_path)

    def test_what_modules_print_of_memory_is_of_no_matter(self, made, tmp_path):
        model, batches = made
        for _ in range(2):
            model[4] = Shown(object())
            run(model, batches, folder=tmp_path)

    def test_one_at_a_time(self, made, tmp_path):
        run(*made, folder=tmp_path)
        campaign = json.loads((tmp_path / "campaign.json").read_text())["identity"]
        with CampaignFolder(tmp_path, campaign), pytest.raises(BusyError, match="another campaign is at work"):
            run(*made, folder=tmp_path)

    def test_what_is_no_campaign_is_left_alone(self, made, tmp_path):
        (tmp_path / "thesis.txt").write_text("all of it")
        with pytest.raises(FormatError, match="expected an empty folder or a campaign's"):
            run(*made, folder=tmp_path)
        with pytest.raises(FormatError, match="expected a folder for a campaign, got a file"):
            run(*made, folder=tmp_path / "thesis.txt")
        assert os.listdir(tmp_path) == ["thesis.txt"]

    def test_draws_without_their_campaign(self, made, tmp_path):
        run(*made, folder=tmp_path)
        (tmp_path / "campaign.json").unlink()
        (tmp_path / "result.json").unlink()
        (tmp_path / "clean.sparing").unlink()
        with pytest.raises(FormatError, match=r"campaign\.json is missing: whose draws"):
            run(*made, folder=tmp_path)

    def test_bad_arguments_leave_no_folder(self, made, tmp_path):
        with pytest.raises(ArgumentError, match="no layer is called 'nowhere'"):
            run(*made, folder=tmp_path / "new", include=["nowhere"])
        assert not (tmp_path / "new").exists()


class Shown(nn.ReLU):
    """Prints an address, and has a state that is no tensor."""

    def __init__(self, thing):
        super().__init__()
        self.thing = thing

    def extra_repr(self):
        return repr(self.thing)

    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


KILLED = """
import os, signal, sys
from sparing.faults.campaign import sweep
from sparing.faults.campaign_result import CampaignConfig
from sparing.faults.models import StuckAt

torch.set_num_threads(1)
model, batches = network()

def die_at(step, real=os.fsync):
    left = [step]
    def counted(descriptor):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(descriptor)
    os.fsync = counted

for step in range(1, 100, 5):
    child = os.fork()
    if child == 0:
        die_at(step)
        sweep(model, batches, StuckAt(form="bit"), [0, 0.02, 0.1], folder=sys.argv[1],
              config=CampaignConfig(min_draws=3, max_draws=6, half_width=0.04, seed=5))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.waitstatus_to_exitcode(status), flush=True)
    if not os.WIFSIGNALED(status):
        break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_again_and_again(made, tmp_path):
    """Each process gets a little further than the one before it was killed; the last one ends."""
    run(*made, folder=tmp_path / "whole")
    command = [sys.executable, "-c", NETWORK + KILLED, str(tmp_path / "killed")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    *kills, last = map(int, done.stdout.split())
    assert (last, done.returncode) == (0, 0), done.stderr
    assert len(kills) >= 3
    assert set(kills) == {signal.SIGKILL}
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


class TestCompare:
    def test_paired(self, made):
        model, batches = made
        other, _ = network(seed=1)  # noqa: F821 - of the text above
        first, second = run(model, batches), run(other, batches)
        found = compare(first, second)
        assert [row.rate for row in found] == RATES
        assert found[0].mean == first.clean_accuracy - second.clean_accuracy
        assert found[0].num_draws == 0
        for row, a, b in zip(found[1:], first.points[1:], second.points[1:], strict=True):
            n = min(a.num_draws, b.num_draws)
            assert row.num_draws == n
            assert row.mean == pytest.approx(np.mean(a.accuracies[:n]) - np.mean(b.accuracies[:n]))
            assert row.interval.low < row.mean < row.interval.high

    def test_common_rates_only(self, made):
        assert [row.rate for row in compare(run(*made), run(*made, rates=[0.1, 0.3]))] == [0.1]
        with pytest.raises(ArgumentError, match="expected a common rate"):
            compare(run(*made, rates=[0.1]), run(*made, rates=[0.2]))

    def test_what_is_not_paired_is_refused(self, made):
        model, batches = made
        first = run(model, batches)
        with pytest.raises(ArgumentError, match=r"not paired: config\.seed: first 5, second 6"):
            compare(first, run(model, batches, config=CONFIG.model_copy(update={"seed": 6})))
        with pytest.raises(ArgumentError, match=r"not paired: fault\.form"):
            compare(first, run(model, batches, fault=StuckAt()))
        with pytest.raises(ArgumentError, match=r"not paired: data\."):
            compare(first, run(model, batches[:1]))
        with pytest.raises(ArgumentError, match=r"not paired: include: first None, second \('7',\)"):
            compare(first, run(model, batches, include=["7"]))


class TestResult:
    def test_saved_and_loaded(self, made, tmp_path):
        result = run(*made)
        result.save(tmp_path / "a.json")
        assert load_campaign_result(tmp_path / "a.json") == result
        assert CampaignResult.model_validate_json(result.model_dump_json()) == result

    def test_says_which_sites_were_hit(self, made):
        result = run(*made, include=["0", "3"], exclude=["3"])
        assert (result.include, result.exclude) == (("0", "3"), ("3",))

    def test_of_before_it_said_so(self, made):
        document = json.loads(run(*made).model_dump_json())
        del document["include"], document["exclude"]
        assert CampaignResult.model_validate(document) == run(*made)

    def test_of_a_campaign_that_has_not_ended(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="the campaign has not ended"):
            load_campaign_result(tmp_path)

    def test_of_something_else(self, tmp_path):
        (tmp_path / "a.json").write_text('{"schema_name": "b", "version": 1}')
        with pytest.raises(FormatError, match="not a campaign's result"):
            load_campaign_result(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rates": []}, ArgumentError, "rates: expected one or more"),
        ({"rates": [0.1, 0.1]}, ArgumentError, "rates: expected different ones"),
        ({"rates": 3}, DtypeError, "rates: expected several numbers"),
        ({"rates": ["a"]}, DtypeError, "rates: expected several numbers"),
        ({"fault": "stuck-at"}, DtypeError, "fault: expected a fault model, got str"),
        ({"config": {"seed": 1}}, DtypeError, "config: expected a CampaignConfig, got dict"),
        ({"rates": [-0.1]}, ArgumentError, "rates: expected finite numbers of 0 or more, got -0.1"),
        ({"rates": [float("nan")]}, ArgumentError, "rates: expected finite numbers"),
        ({"rates": [1.5]}, ConfigError, "StuckAt: rate: .*got 1.5"),
        ({"workers": 0}, ArgumentError, "workers: expected"),
        ({"parallel": "threads"}, ArgumentError, "kind: expected processes or ray"),
        ({"include": ["9"]}, ArgumentError, "no layer is called '9'"),
        (
            {"include": "10"},
            ArgumentError,
            r"include: expected a sequence of names, got the text '10'; write \('10',\)",
        ),
        ({"exclude": "3"}, ArgumentError, "exclude: expected a sequence of names, got the text '3'"),
    ],
)
def test_bad_arguments(made, changes, error, message):
    with pytest.raises(error, match=message):
        run(*made, **changes)


def test_bad_batches(made):
    model, ((images, labels), _) = made
    for batches, error, message in (
        ([], ArgumentError, "batches: expected one or more"),
        ([(images, labels.float())], DtypeError, r"batches\[0\]: expected classes as integers, got torch.float32"),
        ([(images, labels[:3])], ShapeError, r"batches\[0\]: expected images and as many classes"),
        ([(images.numpy(), labels)], DtypeError, r"batches\[0\]: expected two tensors, got ndarray and Tensor"),
        ([(images, labels), (images[:0], labels[:0])], ShapeError, r"batches\[1\]: expected images"),
        ([(images, labels + 4)], ArgumentError, "batches: expected classes below 4, as many as the model has logits"),
        ([(images, labels - 9)], ArgumentError, r"batches\[0\]: expected classes of 0 or more, got -9"),
        ([images], DtypeError, r"batches\[0\]: expected two tensors, got Tensor"),
        (3, DtypeError, "batches: expected batches of images and classes, got int"),
    ):
        with pytest.raises(error, match=message):
            run(model, batches)
    with pytest.raises(ShapeError, match=r"model: expected logits of shape \(1, classes\), got \(1, 3, 6, 6\)"):
        run(nn.Conv2d(3, 3, 1), [(images, labels)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_draws": 1}, "config: min_draws"),
        ({"min_draws": 10, "max_draws": 9}, "max_draws: expected at least min_draws = 10, got 9"),
        ({"half_width": 0}, "half_width"),
        ({"confidence": 1}, "confidence"),
        ({"seed": -1}, "seed"),
        ({"draws": 3}, "draws"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        CampaignConfig.of(**settings)


def test_no_folder_is_tied_to_arguments_that_are_refused(made, tmp_path):
    model, batches = made
    x, y = batches[0]

    class Local(nn.Module):  # of a class that no other process can import
        def __init__(self, *more):
            super().__init__()
            self.inner, self.more = model, more

        def forward(self, images):
            return (self.inner(images), *self.more) if self.more else self.inner(images)

    for error, words, given, images, options in (
        (ArgumentError, "workers", model, batches, {"workers": 0}),
        (ArgumentError, "kind: expected processes or ray", model, batches, {"parallel": "threads"}),
        (RuntimeError, "channels", model, [*batches, (x[:, :2], y)], {}),
        (ArgumentError, "model: Local cannot be sent", Local(), batches, {"workers": 2}),
        (DtypeError, "model: expected a tensor of logits, got tuple", Local(None), batches, {}),
    ):
        with pytest.raises(error, match=words):
            run(given, images, folder=tmp_path / "c", **options)
        assert not (tmp_path / "c").exists()
