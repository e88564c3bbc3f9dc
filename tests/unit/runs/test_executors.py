"""Executors: results in order, errors and interrupts as they come, and no process left behind."""

import functools
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparing.errors import ArgumentError
from sparing.runs import InProcessExecutor, ProcessExecutor, RayExecutor, open_executor

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

# Functions of the standard library: test modules cannot be imported by name in a worker.
PARENT = """
import os, sys, time
from sparing.runs import ProcessExecutor

def pid(seconds):
    time.sleep(seconds)
    return os.getpid()

if __name__ == "__main__":
    with ProcessExecutor(2, shared=list(range(1000))) as executor:
        print(*set(executor.map(pid, [0.3] * 4)), flush=True)
        list(executor.map(time.sleep, [60.0] * 4))
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until_gone(pids, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(map(alive, pids)):
            return
        time.sleep(0.05)
    raise AssertionError(f"still there: {[pid for pid in pids if alive(pid)]}")


@pytest.fixture(scope="module")
def pool():
    with ProcessExecutor(2, shared=bytearray(b"shared")) as executor:
        yield executor


class TestInProcess:
    def test_in_order_and_lazily(self):
        seen = []
        with InProcessExecutor() as executor:
            results = executor.map(lambda x: seen.append(x) or -x, [3, 1, 2])
            assert seen == []
            assert next(results) == -3
            assert seen == [3]
            assert list(results) == [-1, -2]

    def test_what_is_shared_is_not_copied(self):
        value = [1]
        with open_executor(shared=value) as executor:
            assert isinstance(executor, InProcessExecutor)
            assert executor.shared.get() is value
            assert executor.num_workers == 1

    def test_nothing_is_taken_behind_the_end(self):
        executor = InProcessExecutor()
        executor.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(int)

    def test_errors_are_kept_and_interrupts_pass(self):
        def interrupted():
            raise KeyboardInterrupt

        with InProcessExecutor() as executor:
            future = executor.submit(int, "x")
            with pytest.raises(ValueError, match="invalid literal"):
                future.result()
            assert executor.submit(int, "7").result() == 7
            with pytest.raises(KeyboardInterrupt):
                executor.submit(interrupted)


class TestProcesses:
    def test_in_order_whatever_finishes_first(self, pool):
        start = time.monotonic()
        # The first takes longest: completion order is not that of the items.
        list(pool.map(time.sleep, [0.4, 0.0, 0.0, 0.0]))
        assert time.monotonic() - start >= 0.4
        assert list(pool.map(abs, range(-50, 0))) == list(range(50, 0, -1))

    def test_not_in_this_process(self, pool):
        pids = set(pool.map(eval, ["__import__('os').getpid()"] * 20))
        assert os.getpid() not in pids
        assert 1 <= len(pids) <= pool.num_workers == 2

    def test_the_first_error_is_raised(self, pool):
        with pytest.raises(ValueError, match="'no'"):
            list(pool.map(int, ["1", "no", "3", "nor"]))
        assert pool.submit(int, "4").result() == 4

    def test_what_is_shared_is_one_copy_a_worker(self, pool):
        read = functools.partial(pool.shared.get)
        assert pool.submit(read).result() == bytearray(b"shared")
        assert pool.shared.get() == bytearray(b"shared")
        # A worker that writes into its copy changes nothing here.
        pool.submit(eval, "x.get().reverse()", {"x": pool.shared}).result()
        assert pool.shared.get() == bytearray(b"shared")

    def test_threads_are_divided(self, pool):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == str(max(1, cores // 2))

    def test_waiting_tasks_can_be_cancelled(self, pool):
        # A pool hands one task more than it has workers to its queue; those cannot be called back.
        futures = [pool.submit(time.sleep, 0.3) for _ in range(8)]
        assert futures[-1].cancel()
        assert futures[-1].cancelled()
        assert [future.result() for future in futures[:-1]] == [None] * 7

    @needs_signals
    def test_tasks_end_whoever_still_holds_the_executor(self):
        pool = ProcessExecutor(1, shared=3)
        future = pool.submit(time.sleep, 0.5)
        pool.shutdown(wait=False)
        del pool
        assert future.result(timeout=60) is None

    def test_a_task_that_runs_says_so(self):
        with ProcessExecutor(1) as pool:
            future = pool.submit(time.sleep, 1.0)
            for _ in range(600):
                if future.running():
                    break
                time.sleep(0.05)
            assert future.running()
            assert not future.done()

    def test_the_value_of_another_executor_is_refused(self):
        with ProcessExecutor(1, shared="a") as one, ProcessExecutor(1, shared="b") as other:
            read = operator.methodcaller("get")
            assert one.submit(read, one.shared).result() == "a"
            with pytest.raises(AssertionError, match="worker of another executor"):
                other.submit(read, one.shared).result()

    def test_a_worker_that_dies_is_told_of(self):
        with pytest.raises(ChildProcessError, match="a worker process died"), ProcessExecutor(1) as executor:
            executor.submit(os._exit, 3).result()

    def test_forkserver(self):
        if sys.platform == "win32":
            pytest.skip("no forkserver")
        with ProcessExecutor(1, shared=5, start="forkserver", threads=3) as executor:
            assert executor.submit(executor.shared.get).result() == 5
            assert executor.submit(os.getenv, "OMP_NUM_THREADS").result() == "3"

    @needs_signals
    def test_leaving_by_an_error_does_not_wait_for_tasks(self):
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt), ProcessExecutor(1) as executor:
            pid = executor.submit(os.getpid).result()
            executor.submit(time.sleep, 60)
            raise KeyboardInterrupt
        wait_until_gone([pid])
        assert time.monotonic() - start < 30


@needs_signals
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_its_parent(tmp_path, death):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    left = tmp_path / "left"
    left.mkdir()
    environment = {**os.environ, "TMPDIR": str(left)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert pids
        assert all(map(alive, pids))
        assert len(list(left.glob("sparing-*"))) == 1
        process.send_signal(death)
        wait_until_gone([process.pid, *pids])
    assert process.returncode == -death
    assert not list(left.iterdir())


def test_a_script_without_its_guard_is_told_of(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os\nfrom sparing.runs import ProcessExecutor\n"
        "with ProcessExecutor(2, shared=bytes(1_000_000)) as executor:\n    executor.submit(os.getpid).result()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert 'A script wants the usual if __name__ == "__main__":' in done.stderr


@pytest.mark.parametrize("workers", [0, -1, 1.0, True, "2"])
def test_bad_numbers_of_workers(workers):
    with pytest.raises(ArgumentError, match="workers: expected a whole number of 1 or more"), open_executor(workers):
        pass


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="start: expected spawn or forkserver"):
        ProcessExecutor(1, start="fork")
    with pytest.raises(ArgumentError, match="threads: expected 1 or more, got 0"):
        ProcessExecutor(1, threads=0)
    with (
        pytest.raises(ArgumentError, match="kind: expected processes or ray, got 'threads'"),
        open_executor(kind="threads"),
    ):
        pass
    with pytest.raises(ArgumentError, match=r"shared: expected what can be sent .*use one worker"):
        ProcessExecutor(2, shared=lambda: 0)


def test_ray_is_asked_for_by_name():
    try:
        import ray  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"sparing\[cluster\]"):
            RayExecutor(1)


@pytest.fixture(scope="module")
def ray_executor():
    pytest.importorskip("ray", reason="needs sparing[cluster]")
    with open_executor(2, kind="ray", shared=[1, 2]) as executor:
        yield executor


@pytest.mark.cluster
def test_ray(ray_executor):
    assert isinstance(ray_executor, RayExecutor)
    assert list(ray_executor.map(abs, range(-9, 0))) == list(range(9, 0, -1))
    assert ray_executor.submit(ray_executor.shared.get).result() == [1, 2]
    with pytest.raises(ValueError, match="'no'"):
        list(ray_executor.map(int, ["1", "no"]))
    assert ray_executor.submit(int, "3").result() == 3
