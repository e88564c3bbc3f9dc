"""`sparing hybrid`: build, search, change, check and evaluate a text index."""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, cast

from sparing.cli import render
from sparing.errors import ArgumentError
from sparing.hybrid.config import make_config
from sparing.hybrid.encoders import BM25Settings, DenseSettings, SpladeSettings, parse_settings
from sparing.hybrid.evaluate import evaluate
from sparing.hybrid.text import TextIndex
from sparing.hybrid.text_files import read_documents, read_qrels, read_queries

__all__ = ["add_commands"]


def add_commands(groups: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the group to the parser of all commands."""
    group = groups.add_parser("hybrid", help="search texts by meaning and by words at once")
    commands = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_index(_command(commands, "index", _index, "build an index from documents"))
    _add_search(_command(commands, "search", _search, "ask an index a question"))
    add = _command(commands, "add", _add, "add documents to an index")
    _folder(add)
    _documents(add)
    _moved_models(add)
    delete = _command(commands, "delete", _delete, "delete documents from an index")
    _folder(delete)
    delete.add_argument("keys", nargs="+", metavar="KEY", help="keys of the documents")
    _folder(_command(commands, "compact", _compact, "drop deleted documents from the graph and from the disk"))
    _folder(_command(commands, "info", _info, "what an index is made of"))
    _folder(_command(commands, "verify", _verify, "check every byte of an index"))
    evaluation = _command(commands, "eval", _evaluate, "quality and speed on questions with judgements")
    _folder(evaluation)
    evaluation.add_argument("--queries", required=True, metavar="FILE", help="questions: JSONL (id, text) or TSV")
    evaluation.add_argument("--qrels", metavar="FILE", help="judgements in TREC's format")
    _search_options(evaluation)


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="one line of JSON on standard output")
    return parser


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the folder of the index")


def _documents(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("documents", metavar="DOCS.jsonl", help="one JSON object a line; .gz, or - for standard input")
    parser.add_argument("--id-field", default="id", metavar="NAME", help="field with the key (default: id)")
    parser.add_argument("--text-field", default="text", metavar="NAME", help="field with the text (default: text)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts encoded at once (default: 64)")


def _add_index(parser: argparse.ArgumentParser) -> None:
    _documents(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to write; an index in it is replaced")
    parser.add_argument("--dense", metavar="MODEL", help="dense model: a directory, or hf://OWNER/NAME")
    parser.add_argument("--sparse", default="bm25", metavar="MODEL", help="bm25 (default), none, or a SPLADE model")
    parser.add_argument("--language", default="english", help="stemmer of BM25 (default: english; none keeps words)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="cut texts off for the models")
    parser.add_argument("--degree", type=int, metavar="N", help="links an item")
    parser.add_argument("--build-beam", type=int, metavar="N", help="width of the search while building")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the graph (default: 0)")
    parser.add_argument("--threads", type=int, default=0, metavar="N", help="threads for the graph (default: all)")


def _add_search(parser: argparse.ArgumentParser) -> None:
    _folder(parser)
    parser.add_argument("question")
    _search_options(parser)
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="only documents with this metadata; again with another field: both, with the same field: either",
    )


def _search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--k", type=int, default=10, metavar="N", help="answers (default: 10)")
    parser.add_argument("--weights", type=_weights, metavar="D,S", help="dense and sparse weight (default: equal)")
    parser.add_argument("--beam", type=int, metavar="N", help="wider is slower and finds more")
    _moved_models(parser)


def _moved_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dense-model", metavar="DIR", help="where the dense model is now, if it was moved")
    parser.add_argument("--sparse-model", metavar="DIR", help="where the sparse model is now, if it was moved")


def _weights(text: str) -> tuple[float, float]:
    try:
        dense, sparse = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two numbers such as 0.5,0.5, got {text!r}") from None
    return dense, sparse


def _where(pairs: list[str]) -> dict[str, list[Any]] | None:
    where: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ArgumentError(f"--where: expected FIELD=VALUE, got {pair!r}")
        alternatives = where.setdefault(name, [])
        alternatives.append(value)
        # On a command line 7 may be the number or the text, true the truth or the word.
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            continue
        if not isinstance(parsed, str | list | dict):
            alternatives.append(parsed)
    return where or None


def _index(arguments: argparse.Namespace) -> None:
    begin = time.perf_counter()
    documents = list(read_documents(arguments.documents, id_field=arguments.id_field, text_field=arguments.text_field))
    if not documents:
        raise ArgumentError(f"{arguments.documents}: expected documents, got an empty file")
    dense, sparse = _encoders(arguments)
    chosen = {name: getattr(arguments, name) for name in ("degree", "build_beam", "seed")}
    config = make_config({name: value for name, value in chosen.items() if value is not None})
    with (
        render.progress_bars() as progress,
        TextIndex.build(
            documents,
            arguments.out,
            dense=dense,
            sparse=sparse,
            config=config,
            batch_size=arguments.batch_size,
            progress=progress,
            num_threads=arguments.threads,
        ) as index,
    ):
        info = index.info
    seconds = time.perf_counter() - begin
    if arguments.json:
        render.print_json({"folder": arguments.out, "seconds": seconds, "info": info})
    else:
        render.print_info(arguments.out, info)
        render.print_line(f"built in {seconds:.1f} s")


def _encoders(arguments: argparse.Namespace) -> tuple[DenseSettings | None, BM25Settings | SpladeSettings | None]:
    dense: dict[str, Any] | None = None
    sparse: dict[str, Any] | None = None
    if arguments.dense is not None:
        dense = {"kind": "dense", "model": arguments.dense, "max_tokens": arguments.max_tokens}
    if arguments.sparse == "bm25":
        sparse = {"kind": "bm25", "language": None if arguments.language == "none" else arguments.language}
    elif arguments.sparse != "none":
        sparse = {"kind": "splade", "model": arguments.sparse, "max_tokens": arguments.max_tokens}
    # The kinds are those asked for just above; the cast is for the type checker.
    return (
        None if dense is None else cast("DenseSettings", parse_settings(dense)),
        None if sparse is None else cast("BM25Settings | SpladeSettings", parse_settings(sparse)),
    )


def _search(arguments: argparse.Namespace) -> None:
    with _open(arguments) as index:
        hits = index.search(
            arguments.question,
            k=arguments.k,
            weights=arguments.weights,
            where=_where(arguments.where),
            beam=arguments.beam,
            parts=True,
        )
    if arguments.json:
        render.print_json({"question": arguments.question, "hits": hits})
    else:
        render.print_hits(hits)


def _add(arguments: argparse.Namespace) -> None:
    documents = list(read_documents(arguments.documents, id_field=arguments.id_field, text_field=arguments.text_field))
    with _open(arguments) as index, render.progress_bars() as progress:
        index.add(documents, batch_size=arguments.batch_size, progress=progress)
        _changed(arguments, index, f"added {len(documents):,}")


def _delete(arguments: argparse.Namespace) -> None:
    with TextIndex.open(arguments.folder) as index:
        index.delete(arguments.keys)
        _changed(arguments, index, f"deleted {len(arguments.keys):,}")


def _compact(arguments: argparse.Namespace) -> None:
    with TextIndex.open(arguments.folder) as index:
        index.compact()
        _changed(arguments, index, "compacted")


def _changed(arguments: argparse.Namespace, index: TextIndex, what: str) -> None:
    if arguments.json:
        render.print_json({"folder": arguments.folder, "num_documents": len(index)})
    else:
        render.print_line(f"{what}; {len(index):,} documents")


def _info(arguments: argparse.Namespace) -> None:
    with TextIndex.open(arguments.folder) as index:
        info = index.info
    if arguments.json:
        render.print_json(info)
    else:
        render.print_info(arguments.folder, info)


def _verify(arguments: argparse.Namespace) -> None:
    TextIndex.verify(arguments.folder)
    if arguments.json:
        render.print_json({"folder": arguments.folder, "ok": True})
    else:
        render.print_line(f"{arguments.folder}: every byte is as it was written")


def _evaluate(arguments: argparse.Namespace) -> None:
    queries = read_queries(arguments.queries)
    qrels = None if arguments.qrels is None else read_qrels(arguments.qrels)
    with _open(arguments) as index, render.progress_bars() as progress:
        report = evaluate(
            index,
            queries,
            qrels,
            k=arguments.k,
            weights=arguments.weights,
            beam=arguments.beam,
            progress=progress,
        )
    if arguments.json:
        render.print_json(report)
    else:
        render.print_evaluation(report)


def _open(arguments: argparse.Namespace) -> TextIndex:
    return TextIndex.open(arguments.folder, dense_model=arguments.dense_model, sparse_model=arguments.sparse_model)
