"""Loads the benchmark collections (Debian descriptions, Cranfield) and fingerprints them for the run record."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

VOCABULARY = 30_522  # BERT's uncased word pieces, which SPLADE weighs
K = 10


@dataclass(frozen=True)
class Collection:
    """Passages and queries with a dense and a sparse vector each, and the judged answers of every query."""

    name: str
    dense: np.ndarray  # (n, d) float32, L2-normalised
    sparse: sp.csr_matrix  # (n, vocabulary) float32
    query_dense: np.ndarray  # (m, d) float32
    query_sparse: sp.csr_matrix  # (m, vocabulary) float32
    relevant: list[dict[int, float]]  # one a query: passage row -> gain
    fingerprint: str

    def subset(self, num_passages: int, num_queries: int) -> Collection:
        """The first passages and queries, for short trials; judgements outside the subset are dropped."""
        keep = [
            {row: gain for row, gain in answers.items() if row < num_passages}
            for answers in self.relevant[:num_queries]
        ]
        return Collection(
            f"{self.name}-{num_passages}",
            self.dense[:num_passages],
            self.sparse[:num_passages],
            self.query_dense[:num_queries],
            self.query_sparse[:num_queries],
            keep,
            f"{self.fingerprint}:first-{num_passages}-{num_queries}",
        )


class Texts(NamedTuple):
    """Debian's texts: passages, their one-line synopses, queries."""

    passages: list[str]
    synopses: list[str]
    queries: list[str]


def data_folder(explicit: str | None = None) -> Path | None:
    """The data folder, from the argument or SPARING_DATA; None, with the reason printed, when it is absent."""
    name = explicit or os.environ.get("SPARING_DATA")
    if not name:
        print("skipped: give --data DIR or set SPARING_DATA to the folder with debian-descriptions/ and cranfield/")
        return None
    folder = Path(name)
    if not (folder / "debian-descriptions" / "passages.npz").is_file():
        print("skipped: the data folder has no debian-descriptions/passages.npz")
        return None
    return folder


def fingerprint(*files: Path) -> str:
    """SHA-256 over the names and bytes of the files, shortened to 16 digits."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _read_vectors(file: Path) -> tuple[np.ndarray, sp.csr_matrix]:
    with np.load(file, allow_pickle=False) as arrays:
        dense = arrays["dense"].astype(np.float32)
        shape = (dense.shape[0], VOCABULARY)
        parts = (arrays["data"].astype(np.float32), arrays["indices"].astype(np.int32), arrays["indptr"])
        sparse = sp.csr_matrix(parts, shape=shape)
    sparse.sort_indices()
    return np.ascontiguousarray(dense), sparse


def _read_lines(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def load_debian(folder: Path) -> Collection:
    """60,603 package descriptions and 2,000 synopses, each of which has one right passage (known-item search)."""
    root = folder / "debian-descriptions"
    names = ["passages.jsonl.gz", "queries.jsonl.gz", "passages.npz", "queries.npz"]
    dense, sparse = _read_vectors(root / "passages.npz")
    query_dense, query_sparse = _read_vectors(root / "queries.npz")
    row_of = {passage["id"]: row for row, passage in enumerate(_read_lines(root / "passages.jsonl.gz"))}
    relevant = [{row_of[query["relevant"]]: 1.0} for query in _read_lines(root / "queries.jsonl.gz")]
    mark = fingerprint(*(root / name for name in names))
    return Collection("debian", dense, sparse, query_dense, query_sparse, relevant, mark)


def debian_texts(folder: Path) -> Texts:
    """The Debian texts, for sparse vectors other than SPLADE's."""
    root = folder / "debian-descriptions"
    passages, queries = _read_lines(root / "passages.jsonl.gz"), _read_lines(root / "queries.jsonl.gz")
    return Texts(
        [passage["text"] for passage in passages],
        [passage["synopsis"] for passage in passages],
        [query["text"] for query in queries],
    )


def with_bm25(collection: Collection, passages: list[str], queries: list[str]) -> Collection:
    """The same collection with BM25 (Lucene's variant, English stemmer) in place of SPLADE as the sparse side."""
    import bm25s
    import Stemmer

    stemmer = Stemmer.Stemmer("english")
    tokens = bm25s.tokenize(passages, stopwords="en", stemmer=stemmer, show_progress=False)
    model = bm25s.BM25(method="lucene")
    model.index(tokens, show_progress=False)
    parts = (model.scores["data"], model.scores["indices"], model.scores["indptr"])
    width = len(model.scores["indptr"]) - 1
    sparse = sp.csc_matrix(parts, shape=(len(passages), width), dtype=np.float32).tocsr()
    rows: list[int] = []
    terms: list[int] = []
    for row, words in enumerate(
        bm25s.tokenize(queries, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False)
    ):
        known = [model.vocab_dict[word] for word in words if word in model.vocab_dict]
        rows += [row] * len(known)
        terms += known
    ones, places = np.ones(len(rows), np.float32), (np.array(rows, np.int64), np.array(terms, np.int64))
    counts = sp.coo_matrix((ones, places), shape=(len(queries), width))
    return replace(collection, name=f"{collection.name}-bm25", sparse=sparse, query_sparse=counts.tocsr())


def _smart_records(file: Path) -> list[dict[str, str]]:
    """Records of a SMART-format file as {field letter: text}, in file order."""
    records = []
    for chunk in re.split(r"(?m)^\.I ", file.read_text(encoding="latin-1"))[1:]:
        parts = re.split(r"(?m)^\.([A-Z])[ \t]*\n", chunk)
        fields = {"I": parts[0].strip()}
        for letter, text in zip(parts[1::2], parts[2::2], strict=True):
            fields[letter] = " ".join(text.split())
        records.append(fields)
    return records


def cranfield_texts(folder: Path) -> tuple[list[str], list[str], list[dict[int, float]]]:
    """Cranfield's 1,400 abstracts, 225 questions and human judgements.

    The abstracts repeat their title as the first sentence, so the text is the abstract (the title where it is
    empty). Grades 1 (best) to 4 become gains 4 to 1, −1 (not relevant) is dropped. Questions are numbered in file
    order.
    """
    root = folder / "cranfield"
    passages = [record.get("W") or record.get("T", "") for record in _smart_records(root / "cran.all.1400")]
    questions = [record["W"] for record in _smart_records(root / "cran.qry")]
    relevant: list[dict[int, float]] = [{} for _ in questions]
    for line in (root / "cranqrel").read_text().splitlines():
        question, passage, grade = (int(part) for part in line.split())
        if grade > 0:
            relevant[question - 1][passage - 1] = float(5 - grade)
    return passages, questions, relevant


def load_cranfield(folder: Path, work: Path) -> Collection:
    """Cranfield with its vectors, encoded once and kept in the work folder."""
    from benchmarks.hybrid.encode import encode_pair

    root = folder / "cranfield"
    mark = fingerprint(*(root / name for name in ["cran.all.1400", "cran.qry", "cranqrel"]))
    passages, questions, relevant = cranfield_texts(folder)
    dense, sparse = encode_pair(passages, work / f"cranfield-passages-{mark}.npz")
    query_dense, query_sparse = encode_pair(questions, work / f"cranfield-queries-{mark}.npz")
    return Collection("cranfield", dense, sparse, query_dense, query_sparse, relevant, mark)
