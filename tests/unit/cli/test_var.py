"""The commands of `sparing var`, called in this process, on images and models made on the spot."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs sparing[var]")
pytest.importorskip("safetensors", reason="needs sparing[var]")
pytest.importorskip("huggingface_hub", reason="needs sparing[var]")
pytest.importorskip("PIL", reason="needs sparing[var]")

import torch
from PIL import Image
from safetensors.torch import save_file

from sparing.cli import render
from sparing.cli.main import main

CLASSES = ("blue", "green", "red")
TINY = ["--patch-nums", "1,2,3", "--vocab-size", "16", "--z-channels", "4", "--ch", "8", "--ch-mult", "1,1"]
TINY += ["--num-groups", "4", "--precision", "float32", "--batch-size", "4"]
SMALL = ["--depth", "2", "--embed-dim", "16", "--heads", "2", "--precision", "float32", "--batch-size", "4"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for channel, name in enumerate(reversed(CLASSES)):
        (folder / name).mkdir()
        for number in range(6):
            pixels = random.integers(0, 90, (6, 6, 3), np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(images, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    assert main(["var", "train-tokenizer", images, "--out", folder, "--steps", "50", *TINY]) == 0
    return folder


@pytest.fixture(scope="module")
def run(images, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    arguments = ["--tokenizer", tokenizer, "--out", str(folder), "--steps", "50", *SMALL]
    assert main(["var", "train", images, *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def pipeline(run):
    return str(run / "pipeline")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    from sparing.vision import resnet8, save_classifier

    path = tmp_path_factory.mktemp("classifier") / "judge.safetensors"
    save_classifier(path, resnet8(num_classes=3, width=4), class_names=CLASSES)
    return str(path)


def run_json(capsys, *arguments):
    capsys.readouterr()
    assert main(["var", *map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err == ""
    return json.loads(out)


def run_text(capsys, *arguments):
    capsys.readouterr()
    assert main(["var", *map(str, arguments)]) == 0
    return " ".join(capsys.readouterr().out.split())


def run_error(capsys, *arguments):
    capsys.readouterr()
    assert main(["var", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sparing: error: ")
    assert err.count("\n") == 1
    return err


def at_step(monkeypatch, step, act):
    """Acts when a training has done so many steps."""

    @contextlib.contextmanager
    def bars():
        yield lambda stage, done, _total: act() if (stage, done) == ("training", step) else None

    monkeypatch.setattr(render, "progress_bars", bars)


def size_of(path):
    with Image.open(path) as image:
        return image.size


@pytest.mark.parametrize(
    ("name", "part", "parameters"),
    [
        ("d16", "transformer", 310_283_520),
        ("d20", "transformer", 600_917_136),
        ("d24", "transformer", 1_033_399_360),
        ("d30", "transformer", 2_010_020_356),
        ("d36-s", "transformer", 2_353_893_904),
        ("vqvae", "tokenizer", 108_948_355),
    ],
)
def test_info_of_released_layouts(capsys, name, part, parameters):
    found = run_json(capsys, "info", name)
    assert found[part]["num_parameters"] == parameters
    assert found[part]["bytes"] == {"float32": 4 * parameters, "bfloat16": 2 * parameters}
    assert found[part]["num_tokens"] == (2240 if name == "d36-s" else 680)
    if part == "transformer":
        assert found["cost"]["macs_total"] == sum(found["cost"]["macs"].values())


def test_info_of_d16_agrees_with_the_published_arithmetic(capsys):
    cost = run_json(capsys, "info", "d16")["cost"]
    # Two operations a multiply-add: 548 GFLOP of linear layers in blocks, of which attention is 6.3 % more or less.
    assert 2 * sum(cost["macs"][name] for name in ("qkv", "proj", "fc1", "fc2")) == pytest.approx(548e9, rel=1e-3)
    assert cost["macs"]["attention"] / cost["macs_total"] == pytest.approx(0.063, abs=5e-4)
    assert "310,283,520 (310.3 M)" in run_text(capsys, "info", "d16")
    assert "108,948,355 (108.9 M)" in run_text(capsys, "info", "vqvae")


def test_info_of_files(capsys, tmp_path, pipeline):
    from sparing.var import VQVAE, TokenizerConfig, VARPipeline

    tokenizer = VQVAE(TokenizerConfig(patch_nums=(1, 2, 3), ch=32, ch_mult=(1,), vocab_size=8))
    models = {"tokenizer": tokenizer, "transformer": VARPipeline.from_pretrained(pipeline).transformer}
    for part, model in models.items():
        torch.save(model.state_dict(), tmp_path / f"{part}.pth")
        found = run_json(capsys, "info", tmp_path / f"{part}.pth", "--patch-nums", "1,2,3")
        assert found[part]["num_parameters"] == model.num_parameters
        assert "released file" in run_text(capsys, "info", tmp_path / f"{part}.pth", "--patch-nums", "1,2,3")
    assert "give patch_nums" in run_error(capsys, "info", tmp_path / "transformer.pth")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert "neither a VAR transformer nor" in run_error(capsys, "info", tmp_path / "x.safetensors")


def test_training_writes_what_it_says(capsys, images, tokenizer, run, tmp_path):
    arguments = [images, "--out", tokenizer, "--steps", "50", *TINY]
    answer = run_json(capsys, "train-tokenizer", *arguments)
    assert answer["steps"] == answer["last"]["step"] == 50
    assert size_of(f"{tokenizer}/reconstructions.png") == (10 * 20 - 2, 2 * 20 - 2)
    assert json.loads((run / "history.json").read_text())[-1]["right"] > 0
    assert size_of(run / "samples.png") == (8 * 20 - 2, 3 * 20 - 2)
    assert run_json(capsys, "info", tokenizer)["kind"] == "tokenizer"
    found = run_json(capsys, "info", run / "pipeline")
    assert found["class_names"] == list(CLASSES)
    assert found["plan"] is None
    assert found["transformer"]["config"]["num_classes"] == 3
    assert found["transformer"]["config"]["patch_nums"] == [1, 2, 3]
    arguments = ["train", images, "--tokenizer", tokenizer, "--out", run, "--steps", "50", *SMALL]
    assert "50 in all" in run_text(capsys, *arguments)


def test_other_settings_are_refused(capsys, images, tokenizer, run, classifier, tmp_path):
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}
    out = ["--out", tokenizer, "--steps", "50", *TINY]
    assert "seed: saved 0, now 1" in run_error(capsys, "train-tokenizer", images, *out, "--seed", "1")
    assert "data.name: saved" in run_error(capsys, "train-tokenizer", images, *out, "--features", classifier)
    out = ["--tokenizer", tokenizer, "--out", run, *SMALL]
    assert "steps: saved 50, now 60" in run_error(capsys, "train", images, *out, "--steps", "60")
    assert "shared_adaln" in run_error(capsys, "train", images, *out, "--steps", "50", "--shared-adaln")
    other = str(tmp_path / "other")
    assert main(["var", "train-tokenizer", images, "--out", other, "--steps", "1", *TINY, "--seed", "1"]) == 0
    out[1] = other
    assert "through tokenizer" in run_error(capsys, "train", images, *out, "--steps", "50")
    assert {name: (run / name).read_bytes() for name in before} == before


def test_settings_from_a_file_give_way_to_options(capsys, images, tmp_path, classifier):
    file = tmp_path / "settings.toml"
    file.write_text("tokenizer = { vocab_size = 8, num_res_blocks = 2 }\n[training]\nsteps = 3\nbatch_size = 5\n")
    arguments = [images, "--config", file, "--out", tmp_path / "t", *TINY, "--features", classifier]
    answer = run_json(capsys, "train-tokenizer", *arguments)
    assert (answer["steps"], answer["last"]) == (3, None)
    settings = json.loads((tmp_path / "t" / "tokenizer.json").read_text())["tokenizer"]
    assert (settings["vocab_size"], settings["num_res_blocks"]) == (16, 2)
    for text, message in (
        ("[tokenizer", "not TOML"),
        ("[model]\n", "[tokenizer], [training]"),
        ("[training]\nstep = 3", "step:"),
        ("[tokenizer]\nch = 9\nnum_groups = 4", "num_groups"),
    ):
        file.write_text(text)
        refused = [images, "--config", file, "--out", tmp_path / "none"]
        assert message in run_error(capsys, "train-tokenizer", *refused)
    file.write_text("[transformer]\nvocab_size = 8")
    refused = [images, "--config", file, "--out", tmp_path / "none", "--tokenizer", tmp_path / "t", *SMALL]
    assert "vocab_size: the tokenizer and the images decide 16" in run_error(capsys, "train", *refused)
    assert not (tmp_path / "none").exists()


KILLED = """
import contextlib, os, signal, sys
from sparing.cli import main, render
@contextlib.contextmanager
def bars():
    yield lambda stage, done, total: os.kill(os.getpid(), signal.SIGKILL) if (stage, done) == ("training", 9) else None
render.progress_bars = bars
sys.exit(main.main(sys.argv[1:]))
"""


def test_stopped_and_killed_trainings_end_in_the_same_bytes(capsys, monkeypatch, images, tokenizer, tmp_path):
    def weights(name):
        return {p.name: p.read_bytes() for p in (tmp_path / name / "pipeline").iterdir() if p.name != "README.md"}

    arguments = ["var", "train", images, "--tokenizer", tokenizer, "--steps", "12", *SMALL]
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    stopped = [*arguments, "--out", str(tmp_path / "stopped")]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main(stopped) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert not (tmp_path / "stopped" / "pipeline").exists()
    assert json.loads(next((tmp_path / "stopped").glob("checkpoints/gen-*/checkpoint.json")).read_text())["step"] == 5
    killed = subprocess.run([sys.executable, "-c", KILLED, *stopped], stdout=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "stopped" / "pipeline").exists()
    assert main(stopped) == 0
    assert weights("stopped") == weights("whole")
    assert main(stopped) == 0
    assert weights("stopped") == weights("whole")


def test_a_stopped_tokenizer_ends_in_the_same_bytes(monkeypatch, images, tmp_path):
    arguments = ["var", "train-tokenizer", images, "--steps", "6", *TINY]
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main([*arguments, "--out", str(tmp_path / "stopped")]) == 130
    for name in ("whole", "stopped"):
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    for file in ("tokenizer.safetensors", "tokenizer.json", "history.json", "reconstructions.png"):
        assert (tmp_path / "stopped" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_sample_compiled(capsys, pipeline, tmp_path, monkeypatch):
    from sparing.var import VARPipeline

    calls = []
    monkeypatch.setattr(VARPipeline, "compile_", lambda pipe: calls.append(pipe.device.type))
    sample = ["sample", pipeline, "--num", 1, "--out", tmp_path / "grid.png"]
    run_json(capsys, *sample)
    assert not calls
    run_json(capsys, *sample, "--compile")
    assert calls == ["cpu"]


def test_sample(capsys, pipeline, tmp_path):
    out = tmp_path / "grid.png"
    answer = run_json(capsys, "sample", pipeline, "--classes", "red,0", "--num", 3, "--seed", 4, "--out", out)
    assert answer["file"] == str(out)
    assert answer["num_images"] == 6
    assert answer["latency_s"] > 0
    assert answer["peak_bytes"] is None or answer["peak_bytes"] > 0
    assert size_of(out) == (3 * 20 - 2, 2 * 20 - 2)
    first = out.read_bytes()
    again = ["sample", pipeline, "--classes", "2,blue", "--num", 3, "--out", out]
    run_json(capsys, *again, "--seed", 4)
    assert out.read_bytes() == first
    assert "6 images in" in run_text(capsys, *again, "--batch-size", 4, "--precision", "bfloat16", "--top-k", 2)
    assert out.read_bytes() != first


def test_calibrate_and_compress(capsys, pipeline, images, tmp_path):
    plan, small = tmp_path / "plan.json", tmp_path / "small"
    calibrate = ["calibrate", pipeline, "--out", plan, "--num-images", 6]
    answer = run_json(capsys, *calibrate, "--min-removed", 0.4, "--data", images, "--cache", tmp_path / "cache")
    assert answer["files"] == [str(plan)]
    assert answer["plan"]["attention_removed"] >= 0.4
    assert answer["plan"]["notes"]["calibration_images"] == 6
    assert len(list((tmp_path / "cache").iterdir())) == 1
    change = run_json(capsys, "compress", pipeline, "--plan", plan, "--out", small)
    removed = 1 - change["after"]["attention_macs"] / change["before"]["attention_macs"]
    assert removed == pytest.approx(answer["plan"]["attention_removed"])
    assert change["after"]["cache_bytes"] < change["before"]["cache_bytes"]
    found = run_json(capsys, "info", small)
    assert found["plan"] == answer["plan"]
    assert found["cost_with_plan"]["attention_removed"] == pytest.approx(removed)
    assert "attention removed" in run_text(capsys, "info", small)
    assert "multiply-adds" in run_text(capsys, "compress", small, "--plan", plan, "--out", small)
    sample = ["sample", small, "--num", 2, "--out"]
    with_plan = run_json(capsys, *sample, tmp_path / "a.png")
    without = run_json(capsys, *sample, tmp_path / "b.png", "--no-plan")
    run_json(capsys, "sample", pipeline, "--num", 2, "--out", tmp_path / "c.png")
    assert with_plan["num_images"] == without["num_images"] == 6
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_integers_and_small_files(capsys, pipeline, tmp_path):
    from sparing.var import VARPipeline

    packed, plan, small = (tmp_path / name for name in ("packed", "plan.json", "small"))
    VARPipeline.from_pretrained(pipeline).save_pretrained(packed, weight_bits=8)
    answer = run_json(
        capsys, "calibrate", packed, "--out", plan, "--num-images", 4, "--taus", "none", "--int8", "--max-divergence", 5
    )
    precision = answer["plan"]["precision"]
    assert set(precision["linears"]) == {"W8A8"}
    assert (precision["kv_bits"], precision["decoder_bits"]) == (8, 8)
    run_json(capsys, "compress", packed, "--plan", plan, "--out", small, "--weight-bits", 8)
    weights = [file.name for file in sorted(small.glob("*.safetensors"))]
    assert weights == [file.name for file in sorted(packed.glob("*.safetensors"))]
    run_json(capsys, "sample", small, "--num", 1, "--out", tmp_path / "a.png")


def test_the_numbers_of_a_plan_are_shown(capsys, pipeline, tmp_path):
    from sparing.var import CompressionPlan, PrecisionPlan, VARPipeline
    from sparing.var.pipeline import weights_fingerprint

    model = VARPipeline.from_pretrained(pipeline).transformer
    precision = PrecisionPlan(kv_bits=8, attention_bits=6, decoder_bits=8)
    plan = CompressionPlan(model=model.config, weights=weights_fingerprint(model), precision=precision)
    plan.save(tmp_path / "plan.json")
    run_json(capsys, "compress", pipeline, "--plan", tmp_path / "plan.json", "--out", tmp_path / "small")
    found = run_json(capsys, "info", tmp_path / "small")["plan"]["precision"]
    assert found == {"linears": {}, "kv_bits": 8, "attention_bits": 6, "decoder_bits": 8}
    shown = run_text(capsys, "info", tmp_path / "small")
    assert "keys and values 8 bits, attention 6 bits, image decoder 8 bits" in shown
    run_json(capsys, "sample", tmp_path / "small", "--classes", "red", "--out", tmp_path / "a.png")
    assert run_json(capsys, "analyze", tmp_path / "small")


def test_calibrate_within_a_divergence(capsys, pipeline, tmp_path):
    pytest.importorskip("matplotlib", reason="needs sparing[plot]")
    options = ["--num-images", 4, "--taus", "0.9,0.6", "--maps", "union", "--sharing", "map", "--guidance", 2]
    calibrate = ["calibrate", pipeline, "--out", tmp_path / "plan.json", *options]
    answer = run_json(capsys, *calibrate, "--max-divergence", 0.5, "--front", tmp_path / "front.png")
    assert answer["files"][1:] == [str(tmp_path / "front.json"), str(tmp_path / "front.png")]
    assert answer["plan"]["notes"]["divergence_measured"] <= 0.5
    points = json.loads((tmp_path / "front.json").read_text())["points"]
    assert [p["removed"] for p in points] == sorted(p["removed"] for p in points)
    assert points[0]["divergence"] == points[0]["removed"] == 0
    assert points[-1]["divergence"] is not None
    assert "written" in run_text(capsys, *calibrate, "--sharing", "none", "--taus", "none")
    assert "at most" in run_error(capsys, *calibrate, "--sharing", "none", "--taus", "none", "--min-removed", 0.5)


def test_an_interrupted_calibration_writes_nothing(monkeypatch, pipeline, tmp_path):
    @contextlib.contextmanager
    def bars():
        def stop(*_):
            raise KeyboardInterrupt

        yield stop

    monkeypatch.setattr(render, "progress_bars", bars)
    assert main(["var", "calibrate", pipeline, "--out", str(tmp_path / "plan.json"), "--num-images", "2"]) == 130
    assert list(tmp_path.iterdir()) == []


def test_eval(capsys, pipeline, images, classifier):
    arguments = ["eval", pipeline, "--data", images, "--classifier", classifier, "--samples", 12, "--num-images", 7]
    answer = run_json(capsys, *arguments, "--batch-size", 5)
    report = answer["quality"]
    assert report["num_samples"] == 12
    assert report["features"] == "judge, penultimate layer (16)"
    assert report["frechet"] >= 0
    assert 0 <= report["class_agreement"] <= 1
    assert (answer["num_real"], answer["num_taught"], answer["plan"]) == (18, 7, None)
    assert len(answer["cross_entropy"]) == 3
    assert answer["cross_entropy_mean"] == pytest.approx(np.dot(answer["cross_entropy"], [1, 4, 9]) / 14)
    assert answer["cross_entropy_mean"] < np.log(16) + 0.1
    assert run_json(capsys, *arguments, "--batch-size", 5) == answer
    assert "Fréchet distance" in run_text(capsys, *arguments, "--no-plan", "--precision", "bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "d17"], "expected one of d16, d20"),
        (["info", "{tmp}"], "no config.json"),
        (["train-tokenizer", "{tmp}/none", "--out", "{tmp}/o"], "expected a folder with one sub-folder per class"),
        (["train-tokenizer", "{images}", "--out", "{tmp}/o", "--ch", "9"], "num_groups"),
        (["train-tokenizer", "{images}", "--out", "{tmp}/o", "--steps", "0"], "steps"),
        (["train-tokenizer", "{images}", "--out", "{tmp}/o", "--device", "cuda:99"], "--device: 'cuda:99'"),
        (["train-tokenizer", "{images}", "--out", "{tmp}/o", "--device", "meta"], "holds no numbers"),
        (["train-tokenizer", "{images}", "--out", "{tmp}/o", "--features", "{tmp}/none"], "no such file"),
        (["train-tokenizer", "{images}", "--out", "{tmp}/o", "--config", "{tmp}/none"], "No such file"),
        (["train", "{images}", "--tokenizer", "{tmp}", "--out", "{tmp}/o"], "no tokenizer.json"),
        (["sample", "{tmp}/none", "--out", "{tmp}/x.png"], "no folder"),
        (["sample", "{pipe}", "--out", "{tmp}/no/x.png"], "does not exist"),
        (["sample", "{pipe}", "--out", "{tmp}/x.png", "--classes", "red,zebra"], "got 'zebra'"),
        (["sample", "{pipe}", "--out", "{tmp}/x.png", "--classes", "3"], "0 to 2"),
        (["sample", "{pipe}", "--out", "{tmp}/x.png", "--num", "0"], "--num"),
        (["sample", "{pipe}", "--out", "{tmp}/x.png", "--top-p", "2"], "top_p"),
        (["sample", "{pipe}", "--out", "{tmp}/x.png", "--guidance=-1"], "guidance_scale"),
        (["calibrate", "{pipe}", "--out", "{tmp}/no/plan.json"], "does not exist"),
        (["calibrate", "{pipe}", "--out", "{tmp}/p.json", "--front", "{tmp}/front.pdf"], ".json or .png"),
        (["calibrate", "{pipe}", "--out", "{tmp}/p.json", "--min-removed", "2"], "min_removed"),
        (["calibrate", "{pipe}", "--out", "{tmp}/p.json", "--taus", "2"], "taus"),
        (["calibrate", "{pipe}", "--out", "{tmp}/p.json", "--num-images", "0"], "num_images"),
        (["compress", "{pipe}", "--plan", "{tmp}/none.json", "--out", "{tmp}/o"], "No such file"),
        (["compress", "{pipe}", "--plan", "{images}/red/0.png", "--out", "{tmp}/o"], "not a compression plan"),
        (["compress", "{pipe}", "--plan", "{tmp}/p.json", "--out", "{images}"], "holds other things"),
        (["eval", "{pipe}", "--data", "{images}", "--classifier", "{images}/red/0.png"], "not a file of safetensors"),
        (["eval", "{pipe}", "--data", "{tmp}/none", "--classifier", "{judge}"], "one sub-folder per class"),
        (["eval", "{pipe}", "--data", "{images}", "--classifier", "{judge}", "--samples", "3"], "--samples"),
    ],
)
def test_errors_are_one_line(tmp_path, images, pipeline, classifier, capsys, arguments, message):
    names = {"tmp": tmp_path, "images": images, "pipe": pipeline, "judge": classifier}
    assert message in run_error(capsys, *(a.format(**names) for a in arguments))
    assert list(tmp_path.iterdir()) == []


def test_other_classes_are_refused(capsys, pipeline, images, tmp_path, classifier):
    from sparing.vision import resnet8, save_classifier

    (tmp_path / "data").mkdir()
    for name in CLASSES[:2]:
        (tmp_path / "data" / name).symlink_to(f"{images}/{name}")
    judged = ["eval", pipeline, "--samples", 4, "--data", tmp_path / "data", "--classifier"]
    assert "--data: expected the model's classes" in run_error(capsys, *judged, classifier)
    other = tmp_path / "other.safetensors"
    save_classifier(other, resnet8(num_classes=3, width=4), class_names=("red", "green", "blue"))
    assert "--classifier: expected the model's 3 classes" in run_error(capsys, *judged, other)


def test_cifar10_is_known_by_its_files(capsys, monkeypatch, tmp_path):
    import sparing.vision

    (tmp_path / "data_batch_1").touch()
    train = ["train-tokenizer", tmp_path, "--out", tmp_path / "out"]
    assert "made of pickles" in run_error(capsys, *train)
    data = sparing.vision.ImageDataset(np.zeros((4, 3, 32, 32), np.uint8), np.arange(4), ("a", "b", "c", "d"), "C")
    monkeypatch.setattr(sparing.vision, "load_cifar10", lambda folder, *, split, progress: data)
    assert "32×32, but 6×6 are needed" in run_error(capsys, *train, *TINY)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sample", "x"],
        ["train-tokenizer", "x", "--out", "y", "--patch-nums", "a"],
        ["calibrate", "x", "--out", "y", "--taus", "half"],
        ["calibrate", "x", "--out", "y", "--seed", "-1"],
        ["eval", "x", "--data", "y", "--classifier", "z", "--seed", "0.5"],
        ["sample", "x", "--out", "y", "--seed", "99999999999999999999999"],
        ["calibrate", "x", "--out", "y", "--max-divergence", "1", "--min-removed", "0.5"],
    ],
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["var", *arguments])
    assert stop.value.code == 2
    assert "usage: sparing" in capsys.readouterr().err


def test_the_parser_needs_neither_torch_nor_the_compiled_core():
    code = (
        "import sys; sys.modules['sparing._core'] = None\n"
        "from sparing.cli.main import build_parser, main\n"
        "build_parser().parse_args(['var', 'info', 'd16'])\n"
        "assert not {'torch', 'huggingface_hub', 'sparing.var'} & set(sys.modules)\n"
        "sys.exit(main(['hybrid', 'search', 'folder', 'question', '--k', '3']))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.startswith("sparing: error: the compiled extension sparing._core does not load")
