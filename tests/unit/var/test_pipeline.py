"""The pipeline: drawing, saving and loading, damage, and saves killed at every step."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from fnmatch import fnmatch
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs sparing[vision]")
pytest.importorskip("safetensors", reason="needs sparing[vision]")
pytest.importorskip("huggingface_hub", reason="needs sparing[vision]")

from sparing.errors import (  # noqa: E402
    ArgumentError,
    BusyError,
    ConfigError,
    DtypeError,
    FormatError,
    NonFiniteError,
    ShapeError,
    VersionError,
)
from sparing.runs.atomic import only_writer  # noqa: E402
from sparing.var import pipeline_files  # noqa: E402
from sparing.var.apply import apply_  # noqa: E402
from sparing.var.pipeline import VARPipeline, weights_fingerprint  # noqa: E402
from sparing.var.plan import CompressionPlan, LinearFormat, PrecisionPlan, SharingPlan  # noqa: E402


@pytest.fixture
def pipe(tiny):
    return tiny.pipeline()


def with_plan(tiny, pipe, *, windows=True):
    parts = {"windows": tiny.windows(pipe.transformer.config)} if windows else {}
    sharing = SharingPlan(variant="output", first_scale=(None, 3))
    weights = weights_fingerprint(pipe.transformer)
    apply_(pipe, CompressionPlan(model=pipe.transformer.config, weights=weights, sharing=sharing, **parts))
    return pipe


def drawn(pipe, **options):
    output = pipe([0, 3, 5], **options)
    return torch.cat(output.tokens, 1), output.images


def assert_same(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- drawing


def test_output(pipe):
    output = pipe([0, 4], seed=1)
    assert output.images.shape == (2, 3, 16, 16)
    assert output.images.dtype == torch.uint8
    assert [t.shape for t in output.tokens] == [(2, p * p) for p in (1, 2, 3, 4, 6, 8)]
    assert all(int(t.min()) >= 0 and int(t.max()) < 24 for t in output.tokens)
    assert output.latency_s > 0
    assert output.peak_bytes is None or output.peak_bytes > 2**20
    assert len(output.images.unique()) > 20


def test_images_are_those_of_the_tokens(pipe):
    output = pipe([2, 1], seed=3)
    with torch.inference_mode():
        exact = (pipe.tokenizer.decode_tokens(output.tokens) + 1) * 127.5
    assert (output.images - exact).abs().max() <= 0.5 + 1e-3


def test_one_seed_gives_one_picture(pipe):
    assert_same(drawn(pipe, seed=7), drawn(pipe, seed=7))
    assert not torch.equal(drawn(pipe, seed=7)[0], drawn(pipe, seed=8)[0])
    assert_same(drawn(pipe), drawn(pipe, seed=0))


def test_torchs_own_generator_is_neither_used_nor_moved(pipe):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = drawn(pipe, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert_same(drawn(pipe, seed=7), first)


def test_no_seed_draws_anew(pipe):
    assert not torch.equal(drawn(pipe, seed=None, top_p=1.0)[0], drawn(pipe, seed=None, top_p=1.0)[0])


def test_a_generator_takes_the_seeds_place(pipe):
    generator = torch.Generator().manual_seed(7)
    assert_same(drawn(pipe, generator=generator), drawn(pipe, seed=7))
    assert not torch.equal(drawn(pipe, generator=generator)[0], drawn(pipe, seed=7)[0])


def test_a_batch_of_one(pipe):
    assert pipe([3]).images.shape == (1, 3, 16, 16)
    assert_same(pipe([3], seed=2).tokens, pipe(torch.tensor([3], dtype=torch.int32), seed=2).tokens)


def test_guidance_matters(pipe):
    assert not torch.equal(drawn(pipe, guidance_scale=0.0, top_k=1)[0], drawn(pipe, guidance_scale=4.0, top_k=1)[0])


def test_more_codes_than_there_are(pipe):
    assert_same(drawn(pipe, top_k=900), drawn(pipe, top_k=24))


@pytest.mark.parametrize(
    ("labels", "options", "error", "words"),
    [
        ([6], {}, ArgumentError, "class_labels: expected 0..4"),
        ([-1], {}, ArgumentError, "class_labels"),
        ([], {}, ShapeError, "class_labels: expected .B,. with B ≥ 1"),
        ([1.0], {}, DtypeError, "class_labels: expected integers"),
        ([True], {}, DtypeError, "class_labels: expected integers"),
        ([[1]], {}, ShapeError, "class_labels"),
        (1, {}, ShapeError, "class_labels"),
        (torch.tensor([0.5]), {}, DtypeError, "class_labels"),
        (["cat"], {}, DtypeError, "class_labels: expected integers"),
        ([0], {"guidance_scale": -1.0}, ArgumentError, "guidance_scale"),
        ([0], {"guidance_scale": float("nan")}, ArgumentError, "guidance_scale"),
        ([0], {"top_k": -1}, ArgumentError, "top_k"),
        ([0], {"top_p": 0.0}, ArgumentError, "top_p"),
        ([0], {"top_p": 1.5}, ArgumentError, "top_p"),
    ],
)
def test_bad_calls(pipe, labels, options, error, words):
    with pytest.raises(error, match=words):
        pipe(labels, **options)


def test_parts_that_do_not_fit(tiny):
    with pytest.raises(ConfigError, match=r"transformer: patch_nums is \(1, 2\), but the tokenizer's is \(1, 2, 3"):
        VARPipeline(tiny.tokenizer(), tiny.transformer(patch_nums=(1, 2)))
    with pytest.raises(ConfigError, match="vocab_size is 23, but the tokenizer's is 24"):
        VARPipeline(tiny.tokenizer(), tiny.transformer(vocab_size=23))
    with pytest.raises(ConfigError, match="class_names: expected 5 names, got 2"):
        VARPipeline(tiny.tokenizer(), tiny.transformer(), class_names=["a", "b"])


def test_half_precision(pipe):
    exact = drawn(pipe, top_k=1)
    assert pipe.to(dtype=torch.bfloat16) is pipe
    assert pipe.transformer.head.weight.dtype == torch.bfloat16
    assert pipe.tokenizer.quantize.embedding.weight.dtype == torch.float32
    tokens, images = drawn(pipe, top_k=1)
    assert images.shape == exact[1].shape
    assert (tokens == exact[0]).float().mean() > 0.3
    with pytest.raises(ArgumentError, match="dtype: float16"):
        pipe.to(dtype=torch.float16)
    for dtype in (torch.float64, torch.complex64, torch.int8):
        with pytest.raises(ArgumentError, match=f"dtype: expected float32, bfloat16 or, on CUDA, float16, got {dtype}"):
            pipe.to(dtype=dtype)
    assert_same(drawn(pipe, top_k=1), (tokens, images))


@pytest.mark.parametrize("planned", [False, True])
def test_draws_with_new_weights(pipe, tiny, planned):
    form = LinearFormat(weight_bits=8, activation_bits=8, real=True)
    precision = PrecisionPlan(linears={"blocks.0.qkv": form}, decoder_bits=8)
    plan = CompressionPlan(model=pipe.transformer.config, weights="", precision=precision) if planned else None
    pipe.use(plan)
    seen = [drawn(pipe)]
    engine, decoder = pipe.engine, pipe.decoder
    drawn(pipe)
    assert pipe.engine is engine
    assert pipe.decoder is decoder

    def check():
        fresh = VARPipeline(pipe.tokenizer, pipe.transformer)
        fresh.use(plan)
        assert_same(drawn(pipe), drawn(fresh))
        seen.append(drawn(pipe))
        assert not torch.equal(seen[-1][1], seen[-2][1])

    other = tiny.pipeline(seed=5)
    pipe.transformer.load_state_dict(other.transformer.state_dict())
    pipe.tokenizer.load_state_dict(other.tokenizer.state_dict())
    check()
    with torch.no_grad():
        pipe.transformer.pos_1LC.add_(0.5)
        pipe.transformer.blocks[0].attn.q_bias.add_(0.5)
        pipe.tokenizer.decoder.conv_out.bias.add_(0.5)
    check()
    pipe.transformer.load_state_dict(tiny.pipeline(seed=7).transformer.state_dict(), assign=True)
    check()


@pytest.mark.parametrize("part", ["transformer", "tokenizer"])
def test_draws_with_the_part_that_is_in_its_place(pipe, tiny, part):
    own, other = getattr(pipe, part), getattr(tiny.pipeline(seed=5), part)
    first = drawn(pipe)
    setattr(pipe, part, other)
    assert not torch.equal(drawn(pipe)[1], first[1])
    setattr(pipe, part, own)
    assert_same(drawn(pipe), first)


def test_an_edit_that_pytorch_does_not_count_is_seen_after_use(pipe, tiny):
    first, other = drawn(pipe), tiny.pipeline(seed=5)
    for own, new in zip(pipe.transformer.parameters(), other.transformer.parameters(), strict=True):
        own.data.copy_(new)
    pipe.use(pipe.plan)
    expected = drawn(VARPipeline(pipe.tokenizer, other.transformer))
    assert_same(drawn(pipe), expected)
    assert not torch.equal(first[1], expected[1])


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 1.5, "3"])
def test_seeds_that_are_none(pipe, seed):
    with pytest.raises((ArgumentError, DtypeError), match="seed: expected"):
        pipe([1], seed=seed)


# --- saving and loading


def test_a_plan_for_other_weights_is_not_saved(pipe, tiny, tmp_path):
    with_plan(tiny, pipe)
    pipe.transformer.load_state_dict(tiny.pipeline(seed=5).transformer.state_dict())
    with pytest.raises(ConfigError, match="not those that the plan in force was made for"):
        pipe.save_pretrained(tmp_path / "x")
    pipe.use(None)
    pipe.save_pretrained(tmp_path / "x")
    assert_same(drawn(VARPipeline.from_pretrained(tmp_path / "x")), drawn(pipe))


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("planned", [False, True])
def test_saved_and_loaded_bit_for_bit(pipe, tiny, tmp_path, planned):
    if planned:
        with_plan(tiny, pipe)
    expected = drawn(pipe, seed=3)
    pipe.save_pretrained(tmp_path / "new" / "model")
    found = VARPipeline.from_pretrained(tmp_path / "new" / "model")
    assert found.plan == pipe.plan
    assert found.class_names == ("a", "b", "c", "d", "e")
    for part in ("tokenizer", "transformer"):
        ours, theirs = getattr(pipe, part), getattr(found, part)
        assert theirs.config == ours.config
        saved = theirs.state_dict()
        assert all(torch.equal(t, saved[name]) for name, t in ours.state_dict().items())
    assert_same(drawn(found, seed=3), expected)


def test_saving_twice_gives_the_same_files(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    first = files_of(tmp_path)
    VARPipeline.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert files_of(tmp_path) == first
    assert len(first) == 4, "settings, two parts and a card"


def test_saving_in_eight_bits(pipe, tiny, tmp_path):
    wide = with_plan(tiny, tiny.pipeline(embed_dim=96))
    with pytest.raises(ConfigError, match="weight_bits: the plan in force was made for the weights as they are"):
        wide.save_pretrained(tmp_path / "no", weight_bits=8)
    wide.use(None)
    with pytest.raises(ArgumentError, match="weight_bits: expected 8 or None, got 4"):
        wide.save_pretrained(tmp_path / "no", weight_bits=4)
    wide.save_pretrained(tmp_path / "a")
    wide.save_pretrained(tmp_path / "b", weight_bits=8)
    sizes = [saved_file(tmp_path / name, "transformer").stat().st_size for name in "ab"]
    assert sizes[1] < 0.4 * sizes[0]
    found = VARPipeline.from_pretrained(tmp_path / "b")
    for name, tensor in wide.transformer.state_dict().items():
        step = tensor.flatten(1).abs().amax(1).max() / 127 if tensor.ndim > 1 else 0
        assert (found.transformer.state_dict()[name] - tensor).abs().max() <= 0.501 * step
    assert torch.equal(found.tokenizer.quantize.embedding.weight, wide.tokenizer.quantize.embedding.weight)
    # Rounded once, it can carry a plan, and is rounded again to the same bytes.
    with_plan(tiny, found).save_pretrained(tmp_path / "c", weight_bits=8)
    again = VARPipeline.from_pretrained(tmp_path / "c")
    assert again.plan == found.plan
    assert_same(drawn(again), drawn(found))
    assert (
        saved_file(tmp_path / "c", "transformer").read_bytes() == saved_file(tmp_path / "b", "transformer").read_bytes()
    )


def test_eight_bits_of_a_half_precise_model_load_as_float32(pipe, tmp_path):
    pipe.to(dtype=torch.bfloat16).save_pretrained(tmp_path, weight_bits=8)
    found = VARPipeline.from_pretrained(tmp_path)
    for part in (found.transformer, found.tokenizer):
        assert {t.dtype for t in part.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert torch.equal(found.transformer.head.bias, pipe.transformer.head.bias.float())
    drawn(found)


def test_saving_over_another_model_leaves_nothing_of_it(pipe, tiny, tmp_path):
    with_plan(tiny, tiny.pipeline(seed=5)).save_pretrained(tmp_path)
    (tmp_path / "mine.txt").write_text("kept", encoding="utf-8")
    pipe.save_pretrained(tmp_path)
    found = VARPipeline.from_pretrained(tmp_path)
    assert found.plan is None
    assert_same(drawn(found), drawn(pipe))
    assert len(files_of(tmp_path)) == 5
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "kept"


def test_loading_in_half_precision(pipe, tiny, tmp_path):
    with_plan(tiny, pipe).save_pretrained(tmp_path)
    found = VARPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16, device="cpu")
    assert found.transformer.head.weight.dtype == torch.bfloat16
    assert found.plan == pipe.plan


def test_a_moved_folder_loads(pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert_same(drawn(VARPipeline.from_pretrained("b")), drawn(pipe))


def saved_file(folder, part):
    return folder / json.loads((folder / "config.json").read_text(encoding="utf-8"))["files"][part]


@pytest.mark.parametrize("part", ["tokenizer", "transformer", "plan"])
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_damaged_files(pipe, tiny, tmp_path, part, damage):
    with_plan(tiny, pipe).save_pretrained(tmp_path)
    file = saved_file(tmp_path, part)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.unlink() if damage == "missing" else file.write_bytes(data if damage == "altered" else data[:-9])
    with pytest.raises(FormatError, match=f"{file.name}: missing, truncated or altered"):
        VARPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("where", "value", "error", "words"),
    [
        (["version"], 2, VersionError, "version 2"),
        (["schema_name"], "other", FormatError, "not a saved VARPipeline"),
        (["colour"], 1, FormatError, "colour"),
        (["transformer", "depth"], 0, FormatError, "depth"),
        (["transformer", "depth"], 3, FormatError, "is missing"),
        (["tokenizer", "ch"], 12, FormatError, "expected shape"),
        (["files"], {}, FormatError, "files"),
        (["files", "tokenizer"], "../x.safetensors", FormatError, "plain names"),
        (["files", "tokenizer"], "..", FormatError, "missing"),
        (["class_names"], ["a"], FormatError, "class_names: expected 5 names, got 1"),
        (["transformer", "patch_nums", 5], 40_000, FormatError, "patch_nums"),
        (["transformer", "embed_dim"], 2**40, FormatError, "embed_dim"),
        (["transformer", "depth"], 2**40, FormatError, "depth"),
        (["tokenizer", "ch_mult", 0], 2**40, FormatError, "ch_mult"),
    ],
)
def test_altered_settings(pipe, tmp_path, where, value, error, words):
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    place = fields
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    if where == ["files"]:
        fields["sha256"] = {}
    file.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(error, match=words):
        VARPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"null", b"\xff", b"{}", b"[" * 100_000])
def test_settings_that_are_none(pipe, tmp_path, data):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(FormatError, match=r"config.json: not "):
        VARPipeline.from_pretrained(tmp_path)


def test_folders_of_something_else(tmp_path):
    with pytest.raises(FormatError, match=r"no config\.json; give a folder that save_pretrained wrote"):
        VARPipeline.from_pretrained(tmp_path)
    with pytest.raises(
        ArgumentError, match=r"no folder 'owner/name'; cifar10 comes with the package, .* is named hf://OWNER"
    ):
        VARPipeline.from_pretrained("owner/name")


def test_one_writer_at_a_time(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with only_writer(tmp_path), pytest.raises(BusyError, match="another writer is at work"):
        pipe.save_pretrained(tmp_path, weight_bits=8)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    pipe.save_pretrained(tmp_path, weight_bits=8)


def test_a_save_while_it_is_read(tiny, pipe, tmp_path, monkeypatch):
    pipe.save_pretrained(tmp_path)
    other = tiny.pipeline(seed=9)
    read, saves = pipeline_files.read_state, [other]

    def slow(path):
        if saves:
            saves.pop().save_pretrained(tmp_path)
        return read(path)

    monkeypatch.setattr(pipeline_files, "read_state", slow)
    assert_same(drawn(VARPipeline.from_pretrained(tmp_path)), drawn(other))
    # Not where nothing changed meanwhile: what is missing then is said at once.
    saved_file(tmp_path, "tokenizer").unlink()
    with pytest.raises(FormatError, match="missing, truncated or altered"):
        VARPipeline.from_pretrained(tmp_path)


def test_what_is_uploaded_is_what_was_saved(pipe, tmp_path, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token=None):
            sent["token"] = token

        def create_repo(self, repo_id, **_):
            return Namespace(repo_id=repo_id)

        def upload_folder(self, *, folder_path, repo_id, allow_patterns, **_):
            sent["repo_id"] = repo_id
            for file in Path(folder_path).iterdir():
                if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                    sent[file.name] = file.read_bytes()
            return "there"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    (tmp_path / "README.md").write_text("my card", encoding="utf-8")
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    assert pipe.save_pretrained(tmp_path, weight_bits=8, repo_id="me/x", push_to_hub=True, token="t") == "there"
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != "mine.txt"}
    assert sent == {"token": "t", "repo_id": "me/x", **files}
    assert len(files) == 4
    sent.clear()
    assert pipe.push_to_hub("me/y", weight_bits=8) == "there"
    assert sent["repo_id"] == "me/y"
    assert sent["config.json"] == files["config.json"]
    with pytest.raises(ArgumentError, match="weight_bit: no options of save_pretrained"):
        pipe.save_pretrained(tmp_path, weight_bit=8)


def test_parts_that_cannot_be_drawn_with(tiny, pipe):
    with pytest.raises(DtypeError, match=r"transformer: expected weights of one dtype, .* got torch.float64"):
        VARPipeline(tiny.tokenizer(), tiny.transformer().double())
    mixed = tiny.tokenizer()
    mixed.decoder.bfloat16()
    with pytest.raises(DtypeError, match=r"tokenizer: .* got torch.bfloat16, torch.float32"):
        VARPipeline(mixed, tiny.transformer())
    pipe([0])
    pipe.transformer = tiny.transformer(vocab_size=23)
    for _ in range(2):
        with pytest.raises(ConfigError, match="vocab_size is 23, but the tokenizer's is 24"):
            pipe([0])


def test_arguments_of_other_kinds(pipe):
    with pytest.raises(DtypeError, match=r"generator: expected a torch\.Generator or None, got int"):
        pipe([0], generator=3)
    with pytest.raises(DtypeError, match="top_k: expected a whole number, got float"):
        pipe([0], top_k=2.0)
    for device in ("abc", "meta"):
        with pytest.raises(ArgumentError, match=f"device: '{device}'"):
            pipe.to(device)


def test_an_option_that_nobody_knows(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="dtyp"):
        VARPipeline.from_pretrained(tmp_path, dtyp=torch.bfloat16)


def test_released_files(tiny, tmp_path):
    tokenizer = tiny.tokenizer(ch=32, num_groups=32)
    model = tiny.transformer()
    torch.save(model.state_dict(), tmp_path / "var.pth")
    torch.save(tokenizer.state_dict(), tmp_path / "vae.pth")
    files, parts = (tmp_path / "var.pth", tmp_path / "vae.pth"), (model, tokenizer)
    found = VARPipeline.from_released(*files, patch_nums=tiny.SIX)
    assert_same(drawn(found), drawn(VARPipeline(tokenizer, model)))
    half = VARPipeline.from_released(*files, patch_nums=tiny.SIX, dtype=torch.bfloat16)
    assert half.transformer.head.weight.dtype == torch.bfloat16
    for dtype, expected in ((torch.bfloat16, torch.bfloat16), (torch.float64, torch.float32)):
        states = [{n: t.to(dtype) if t.is_floating_point() else t for n, t in m.state_dict().items()} for m in parts]
        other = tmp_path / "other_var.pth", tmp_path / "other_vae.pth"
        for state, file in zip(states, other, strict=True):
            torch.save(state, file)
        loaded = VARPipeline.from_released(*other, patch_nums=tiny.SIX)
        assert loaded.transformer.head.weight.dtype == expected
        assert loaded.tokenizer.quantize.embedding.weight.dtype == torch.float32
        drawn(loaded)
    with pytest.raises(ConfigError, match="give patch_nums"):
        VARPipeline.from_released(*files)
    with pytest.raises(FormatError, match="not a VAR transformer"):
        VARPipeline.from_released(files[1], files[0], patch_nums=tiny.SIX)
    torch.save({**model.state_dict(), "head.bias": torch.full((24,), torch.nan)}, files[0])
    with pytest.raises(NonFiniteError, match=r"head\.bias"):
        VARPipeline.from_released(*files, patch_nums=tiny.SIX)


# --- saves that are killed

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from sparing.var.pipeline import VARPipeline

old, new, target = map(Path, sys.argv[1:])
new = VARPipeline.from_pretrained(new)

def die_at(step):
    left = [step]
    def counted(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)
        return call
    calls = {os: ["fsync", "open"], Path: ["open", "replace", "chmod", "mkdir", "unlink", "exists"]}
    for owner, names in calls.items():
        for name in names:
            setattr(owner, name, counted(getattr(owner, name)))

for step in range(1, 300):
    folder = target / str(step)
    shutil.copytree(old, folder)
    child = os.fork()
    if child == 0:
        die_at(step)
        new.save_pretrained(folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        print(step, os.waitstatus_to_exitcode(status))
        break
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize(("old_plan", "new_plan"), [(True, False), (False, True), (True, True)])
def test_a_killed_save_leaves_the_old_model_or_the_new_one(tiny, tmp_path, old_plan, new_plan):
    def made(seed, planned):
        pipe = tiny.pipeline(seed=seed, patch_nums=tiny.FIVE[:4], depth=1)
        if planned:
            sharing = SharingPlan(variant="output", first_scale=(seed,))
            weights = weights_fingerprint(pipe.transformer)
            precision = PrecisionPlan(kv_bits=8)
            model = pipe.transformer.config
            apply_(pipe, CompressionPlan(model=model, weights=weights, sharing=sharing, precision=precision))
        return pipe

    old, new = made(0, old_plan), made(1, new_plan)
    old.save_pretrained(tmp_path / "old")
    new.save_pretrained(tmp_path / "new")
    folders = tmp_path / "killed"
    folders.mkdir()
    arguments = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", KILLED]
    arguments += [tmp_path / "old", tmp_path / "new", folders]
    done = subprocess.run(
        arguments, text=True, capture_output=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    last, code = map(int, done.stdout.split())
    assert code == 0
    assert last > 20
    of = {
        "old": (weights_fingerprint(old.transformer), old.plan),
        "new": (weights_fingerprint(new.transformer), new.plan),
    }
    seen = []
    for step in range(1, last + 1):
        found = VARPipeline.from_pretrained(folders / str(step))
        state = (weights_fingerprint(found.transformer), found.plan)
        seen.append(next(name for name, value in of.items() if value == state))
    assert seen == sorted(seen, reverse=True), "the old one, then the new one"
    assert set(seen) == {"old", "new"}
    new.save_pretrained(folders / "3")
    assert sorted(p.name for p in (folders / "3").iterdir()) == sorted(p.name for p in (tmp_path / "new").iterdir())


def test_what_is_drawn_can_be_trained_on(tiny):
    out = tiny.pipeline()([0, 1])
    assert not out.images.is_inference()
    assert not any(tokens.is_inference() for tokens in out.tokens)
