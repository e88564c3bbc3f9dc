"""The commands of `sparing hybrid`, called in this process."""

import gzip
import io
import json
import shutil

import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")
pytest.importorskip("bm25s", reason="needs sparing[text]")

from sparing.cli.main import main

LINES = [
    {"id": "a", "text": "A red [bold]fox[/bold] runs", "section": "animals", "year": 2001},
    {"id": "b", "text": "Prime numbers and foxes", "section": "math", "year": "2001", "tags": ["x", "y"]},
    {"id": "c", "text": "A matrix of numbers", "section": "math", "year": 2002},
]


@pytest.fixture
def docs(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(path)


@pytest.fixture
def folder(tmp_path, docs, capsys):
    assert main(["hybrid", "index", docs, "--out", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    return str(tmp_path / "index")


def run_json(capsys, *arguments):
    assert main(["hybrid", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert err == ""
    return json.loads(out)


def run_error(capsys, *arguments):
    assert main(["hybrid", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sparing: error: ")
    assert err.count("\n") == 1
    return err


def keys(answer):
    return [hit["key"] for hit in answer["hits"]]


def test_index(tmp_path, docs, capsys):
    answer = run_json(capsys, "index", docs, "--out", str(tmp_path / "index"), "--degree", "8", "--seed", "3")
    assert answer["info"]["num_documents"] == 3
    assert answer["info"]["sparse"]["kind"] == "bm25"
    assert answer["seconds"] > 0


def test_index_with_models(tmp_path, docs, capsys, tiny_dense_model, tiny_splade_model):
    out = str(tmp_path / "index")
    models = ["--dense", str(tiny_dense_model), "--sparse", str(tiny_splade_model), "--max-tokens", "16"]
    answer = run_json(capsys, "index", docs, "--out", out, *models)
    assert answer["info"]["dense"]["max_tokens"] == 16
    assert answer["info"]["sparse"]["kind"] == "splade"
    hit = run_json(capsys, "search", out, "fox", "--weights", "0.3,0.7", "--k", "1")["hits"][0]
    assert hit["score"] == pytest.approx(0.3 * hit["dense_score"] + 0.7 * hit["sparse_score"], rel=1e-4)
    moved = ["--dense-model", str(tiny_dense_model), "--sparse-model", str(tiny_splade_model)]
    assert run_json(capsys, "search", out, "fox", *moved)["hits"]
    assert main(["hybrid", "info", out]) == 0
    assert "32 dimensions" in capsys.readouterr().out


@pytest.mark.parametrize("dense_only", [True, False])
def test_one_part(tmp_path, docs, capsys, tiny_dense_model, dense_only):
    parts = ["--dense", str(tiny_dense_model), "--sparse", "none"] if dense_only else ["--language", "none"]
    info = run_json(capsys, "index", docs, "--out", str(tmp_path / "index"), *parts)["info"]
    assert (info["sparse"] is None) == dense_only


def test_input_from_gzip_and_standard_input(tmp_path, docs, capsys, monkeypatch):
    data = (tmp_path / "docs.jsonl").read_bytes()
    (tmp_path / "docs.jsonl.gz").write_bytes(gzip.compress(data))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    for number, source in enumerate((str(tmp_path / "docs.jsonl.gz"), "-")):
        answer = run_json(capsys, "index", source, "--out", str(tmp_path / f"index{number}"))
        assert answer["info"]["num_documents"] == 3


def test_search(folder, capsys):
    assert set(keys(run_json(capsys, "search", folder, "foxes", "--k", "2"))) == {"a", "b"}
    assert main(["hybrid", "search", folder, "foxes", "--k", "2"]) == 0
    out, _ = capsys.readouterr()
    assert "[bold]fox[/bold]" in out
    assert main(["hybrid", "search", folder, "foxes", "--where", "section=math", "--where", "tags=nothing"]) == 0
    assert capsys.readouterr().out == "no answers\n"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["section=math"], "bc"),
        (["section=math", "section=animals"], "abc"),
        (["section=math", "year=2001"], "b"),
        (["year=2001"], "ab"),
        (["tags=y"], "b"),
        (["year=2002"], "c"),
    ],
)
def test_where(folder, capsys, where, expected):
    options = [option for pair in where for option in ("--where", pair)]
    assert "".join(sorted(keys(run_json(capsys, "search", folder, "foxes or numbers", *options)))) == expected


def test_changes(tmp_path, folder, capsys):
    (tmp_path / "more.jsonl").write_text('{"id": "d", "text": "zebra"}\n')
    assert run_json(capsys, "add", folder, str(tmp_path / "more.jsonl"))["num_documents"] == 4
    assert keys(run_json(capsys, "search", folder, "zebra", "--k", "1")) == ["d"]
    assert run_json(capsys, "delete", folder, "a", "d")["num_documents"] == 2
    assert run_json(capsys, "info", folder)["index"]["num_deleted"] == 2
    assert run_json(capsys, "compact", folder)["num_documents"] == 2
    assert run_json(capsys, "info", folder)["index"]["num_deleted"] == 0
    for command in (["delete", folder, "b"], ["compact", folder], ["info", folder], ["verify", folder]):
        assert main(["hybrid", *command]) == 0


def test_a_model_named_from_another_folder_and_moved(tmp_path, docs, capsys, tiny_dense_model, monkeypatch):
    shutil.copytree(tiny_dense_model, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    run_json(capsys, "index", docs, "--out", "index", "--dense", "model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder, more = str(tmp_path / "index"), tmp_path / "more.jsonl"
    assert run_json(capsys, "search", folder, "fox")["hits"]
    (tmp_path / "model").rename(tmp_path / "moved")
    more.write_text('{"id": "d", "text": "zebra"}\n')
    assert "nothing there" in run_error(capsys, "add", folder, str(more))
    moved = ["--dense-model", str(tmp_path / "moved")]
    assert run_json(capsys, "add", folder, str(more), *moved)["num_documents"] == 4


def test_verify(tmp_path, folder, capsys):
    assert run_json(capsys, "verify", folder)["ok"] is True
    file = next((tmp_path / "index").glob("gen-*/index.sparing"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    assert "index.sparing was altered" in run_error(capsys, "verify", folder)
    assert "index.sparing" in run_error(capsys, "search", folder, "fox")


def test_evaluation(tmp_path, folder, capsys):
    pytest.importorskip("ir_measures", reason="needs sparing[eval]")
    (tmp_path / "q.tsv").write_text("1\tfoxes\n2\tmatrix\n")
    (tmp_path / "qrels").write_text("1 0 a 1\n1 0 b 1\n2 0 c 1\n")
    files = ["--queries", str(tmp_path / "q.tsv"), "--qrels", str(tmp_path / "qrels")]
    report = run_json(capsys, "eval", folder, *files, "--k", "2")
    assert report["ndcg_at_10"] == 1
    assert report["recall_at_k"] == 1
    assert report["recall_of_exact"] == 1
    assert main(["hybrid", "eval", folder, *files]) == 0
    assert "nDCG@10" in capsys.readouterr().out
    assert run_json(capsys, "eval", folder, *files[:2])["ndcg_at_10"] is None


def test_a_bad_line_names_file_and_line_and_leaves_no_folder(tmp_path, docs, capsys):
    with open(docs, "a") as file:  # noqa: PTH123
        file.write("{oops\n")
    assert "docs.jsonl:4: not JSON" in run_error(capsys, "index", docs, "--out", str(tmp_path / "index"))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "{tmp}/none.jsonl", "--out", "{tmp}/i"], "No such file"),
        (["index", "{docs}", "--out", "{tmp}/i", "--dense", "{tmp}/none"], "expected a model directory"),
        (["index", "{docs}", "--out", "{tmp}/i", "--dense", "{tmp}", "--max-tokens", "1"], "max_tokens"),
        (["index", "{docs}", "--out", "{tmp}/i", "--sparse", "none"], "at least one encoder"),
        (["index", "{docs}", "--out", "{tmp}/i", "--language", "klingon"], "klingon"),
        (["index", "{docs}", "--out", "{tmp}/i", "--degree", "1"], "degree"),
        (["index", "{docs}", "--out", "{tmp}"], "holds other things"),
        (["index", "{tmp}/empty.jsonl", "--out", "{tmp}/i"], "empty file"),
        (["search", "{tmp}/none", "fox"], "no such folder"),
        (["search", "{tmp}", "fox"], "nothing was saved here"),
        (["search", "{folder}", "fox", "--where", "section"], "expected FIELD=VALUE"),
        (["search", "{folder}", "fox", "--where", "sektion=math"], "sektion"),
        (["search", "{folder}", "fox", "--k", "0"], "k: "),
        (["search", "{folder}", "fox", "--weights", "1,0"], "weights"),
        (["search", "{folder}", "fox", "--weights=-1,1"], "weights"),
        (["add", "{folder}", "{docs}"], "use update"),
        (["delete", "{folder}", "zebra"], "'zebra'"),
        (["eval", "{folder}", "--queries", "{tmp}/empty.jsonl"], "empty file"),
    ],
)
def test_errors_are_one_line(tmp_path, docs, folder, capsys, arguments, message):
    (tmp_path / "empty.jsonl").write_text("\n")
    assert message in run_error(capsys, *(a.format(tmp=tmp_path, docs=docs, folder=folder) for a in arguments))


@pytest.mark.parametrize(
    "arguments", [["hybrid"], [], ["hybrid", "search", "i", "q", "--weights", "half"], ["nothing"]]
)
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: sparing" in capsys.readouterr().err
