"""Opens and uses each file named on the command line, mapped and read, each in a child that may crash.

Prints one JSON object: file name -> [outcome when read, outcome when mapped], where an outcome is "ok", "FormatError",
"memory", another error's name with its message, or "signal N". Not a test itself: a program for test_save.py.
"""

import json
import os
import resource
import sys
import traceback
from pathlib import Path

import numpy as np

from sparing.errors import FormatError
from sparing.hybrid import HybridIndex

ALLOWED_MEGABYTES = 400


def use(path, mapped):
    try:
        index = HybridIndex.open(path, mmap=mapped)
    except FormatError:
        return "FormatError"
    rng = np.random.default_rng(0)
    dim = index.stats.dim
    dense = rng.standard_normal((4, dim)).astype(np.float32) if 0 < dim < 4096 else None
    sparse = [{int(t): float(rng.random()) for t in rng.integers(0, 500, 8)} for _ in range(4)]
    for weights in ((0.5, 0.5), (0, 1), (1, 0)):
        for k in (3, 1000):
            index.search(dense, sparse, k=k, weights=weights)
            index.search_exact(dense, sparse, k=k, weights=weights)
            index.search(dense, sparse, k=k, weights=weights, filter=np.arange(0, 1000, 3))
    if not mapped and dense is not None:
        index.add(dense, sparse, ids=np.arange(10**6, 10**6 + 4))
        index.delete(np.arange(10**6, 10**6 + 2))
        index.search(dense, sparse, k=1000)
        index.compact()
        index.search(dense, sparse, k=1000)
    return "ok"


def outcome(path, mapped):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if "asan" not in os.environ.get("LD_PRELOAD", ""):
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        try:
            answer = use(path, mapped)
        except MemoryError:
            answer = "memory"
        except BaseException as error:  # noqa: BLE001
            answer = f"{type(error).__name__}: {error} {traceback.format_exc()[-600:]}"
        os.write(writer, answer.encode()[:3000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode()
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if usage.ru_maxrss - base > ALLOWED_MEGABYTES * 1024:
        return f"memory: {(usage.ru_maxrss - base) // 1024} MB"
    return answer or f"exit {os.waitstatus_to_exitcode(status)}"


if __name__ == "__main__":
    paths = sorted(Path(sys.argv[1]).iterdir())
    print(json.dumps({path.name: [outcome(path, False), outcome(path, True)] for path in paths}))
