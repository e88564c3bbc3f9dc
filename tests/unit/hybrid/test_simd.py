"""Every instruction set that this CPU runs gives the same answers, up to rounding."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("sparing._core", reason="needs the compiled core")

from sparing import _core as core
from sparing.hybrid import HybridConfig, HybridIndex
from sparing.testing import make_clustered

SEARCH = """
import sys
import numpy as np
from sparing import _core
from sparing.hybrid import HybridIndex
from sparing.testing import make_clustered

data = make_clustered(900, dim=75, vocabulary=3000, terms=40, topics=25, queries=50, seed=31)
folder, level = sys.argv[1:]
assert _core.simd_level() == level, _core.simd_level()
found = {}
for name in ("int4", "int8", "float32", "full"):
    index = HybridIndex.open(f"{folder}/{name}")
    for part, weights in (("both", (0.5, 0.5)), ("dense", (1, 0)), ("sparse", (0, 1))):
        for method in (index.search, index.search_exact):
            result = method(data.dense_queries, data.sparse_queries, k=20, weights=weights)
            found[f"{name} {part} {method.__name__}"] = result.ids
            found[f"{name} {part} {method.__name__} scores"] = result.scores
np.savez(f"{folder}/{level}.npz", **found)
"""


def run(level, *arguments):
    environment = os.environ | {"SPARING_SIMD": level, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, *(["-S"] if sys.flags.no_site else []), "-c", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simd")
    data = make_clustered(900, dim=75, vocabulary=3000, terms=40, topics=25, queries=50, seed=31)
    for name in ("int4", "int8", "float32", "full"):
        fields = {"doc_terms": None} if name == "full" else {"dense_code": name}
        HybridIndex.build(data.dense, data.sparse, config=HybridConfig(**fields)).save(folder / name)
    found = {}
    for level in core.simd_levels():
        done = run(level, SEARCH, str(folder), level)
        assert done.returncode == 0, done.stderr
        with np.load(folder / f"{level}.npz") as file:
            found[level] = dict(file)
    return found


@pytest.mark.parametrize("level", core.simd_levels()[1:])
@pytest.mark.parametrize("method", ["search", "search_exact"])
def test_levels_agree(answers, level, method):
    plain, fast = answers["scalar"], answers[level]
    for name in plain:
        if not name.endswith(method):
            continue
        scores, others = plain[f"{name} scores"], fast[f"{name} scores"]
        np.testing.assert_allclose(scores, others, rtol=1e-5, atol=1e-6, err_msg=name)
        for query in np.flatnonzero((plain[name] != fast[name]).any(axis=1)):
            differing = plain[name][query] != fast[name][query]
            # Only items of (nearly) one score may change places.
            gaps = np.abs(np.subtract.outer(scores[query][differing], others[query]))
            assert (np.sort(gaps, axis=1)[:, 0] <= 1e-5 * np.abs(scores[query][differing]) + 1e-6).all(), name


def test_an_unknown_level_names_the_others():
    code = "import numpy as np\nfrom sparing.hybrid import HybridIndex\nHybridIndex.build(np.eye(3, dtype='f4'), None)"
    done = run("sse9", code)
    assert done.returncode != 0
    assert "ArgumentError: SIMD level 'sse9' cannot run on this CPU; choose one of: scalar" in done.stderr
