"""Run a function over items here, in other processes, or on a Ray cluster: three executors of one shape.

All are :class:`concurrent.futures.Executor`, so that ``executor.map(function, items)`` gives results in the order of
the items, whatever the workers, and raises the error of the first item that failed. What every call needs (a model,
images) is handed over once, as `shared`; tasks get at it through ``executor.shared``.
"""

import contextlib
import multiprocessing
import os
import pickle
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar

from sparing.errors import ArgumentError, MissingExtraError

__all__ = [
    "InProcessExecutor",
    "ProcessExecutor",
    "RayExecutor",
    "Shared",
    "WorkExecutor",
    "check_executor",
    "open_executor",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

# In a worker: what `_start_worker` was given, and what `shared` was unpickled to.
_worker_bytes: bytes | None = None
_worker_name = ""
_worker_values: dict[str, Any] = {}


class Shared(Generic[_T]):
    """A handle to what an executor shares with its tasks. It pickles to almost nothing; :meth:`get` gives the value."""

    def __init__(self, value: _T, *, reference: Any = None, name: str = "") -> None:
        self._value: _T | None = value
        self._here = True
        self._reference = reference
        self._name = name

    @property
    def name(self) -> str:
        """Which value it is, of all that workers might be given."""
        return self._name

    def get(self) -> _T:
        """Gives the value: the very object in the process that shared it, one copy a worker elsewhere."""
        if not self._here:
            if self._name not in _worker_values:
                data = _worker_bytes if self._reference is None else _from_ray(self._reference)
                if data is None:
                    raise AssertionError("a shared value is read in a process that is no worker of its executor")
                if self._reference is None and self._name != _worker_name:
                    raise AssertionError("a shared value is read in a worker of another executor")
                _worker_values.clear()
                _worker_values[self._name] = pickle.loads(data)  # noqa: S301 - our own bytes, from our parent
            self._value, self._here = _worker_values[self._name], True
        return self._value  # type: ignore[return-value]

    def __getstate__(self) -> dict[str, Any]:
        return {"_value": None, "_here": False, "_reference": self._reference, "_name": self._name}


class InProcessExecutor(Executor):
    """Runs each task when it is submitted, in the calling thread. Interrupts pass through at once.

    Args:
        shared: what ``executor.shared.get()`` gives.

    Example:
        >>> with InProcessExecutor(shared=10) as executor:
        ...     list(executor.map(lambda x: x + executor.shared.get(), [1, 2]))
        [11, 12]
    """

    def __init__(self, *, shared: Any = None) -> None:
        self.shared = Shared(shared)
        self.num_workers = 1
        self._is_shut = False

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - nothing is at work
        """Takes no more calls."""
        self._is_shut = True

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        """Runs a call and returns its finished future.

        Raises:
            RuntimeError: behind :meth:`shutdown`.
        """
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future[_T] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future's holder gets it
            future.set_exception(error)
        return future

    def map(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[_T]:
        """Gives results one by one, each computed when it is asked for; the other arguments mean nothing here."""
        del timeout, chunksize
        return (fn(*items) for items in zip(*iterables, strict=False))


class ProcessExecutor(Executor):
    """Runs tasks in processes of its own, which start at the first task and end with this object or this process.

    A worker ends when the process that made it does, even by kill -9. Leaving the ``with`` block by an error or Ctrl-C
    ends workers at once, in the middle of a task. PyTorch in a worker gets its share of the threads. Functions, items
    and results are pickled: functions must be importable, and a script that uses this needs the usual
    ``if __name__ == "__main__":``.

    Args:
        workers: how many processes, 1 or more.
        shared: what ``executor.shared.get()`` gives in a task: pickled now, sent once a worker, unpickled at first use.
        start: ``"spawn"``, or ``"forkserver"`` (not on Windows).
        threads: of PyTorch in each worker; None: the cores this process may use, divided.

    Raises:
        ArgumentError: no worker, no thread, another `start`, or a `shared` that cannot be pickled.
    """

    def __init__(
        self,
        workers: int,
        *,
        shared: Any = None,
        start: Literal["spawn", "forkserver"] = "spawn",
        threads: int | None = None,
    ) -> None:
        _check_workers(workers)
        if start not in ("spawn", "forkserver") or start not in multiprocessing.get_all_start_methods():
            raise ArgumentError(f"start: expected spawn or forkserver, where there is one, got {start!r}")
        if threads is not None and threads < 1:
            raise ArgumentError(f"threads: expected 1 or more, got {threads}")
        self.num_workers = workers
        self.shared = Shared(shared, name=f"{os.getpid()}-{time.monotonic_ns()}")
        context: BaseContext = multiprocessing.get_context(start)
        # Nothing is ever sent: workers wait for its other end to close, by us or by our death.
        reader, self._alive = context.Pipe(duplex=False)
        self._reader: Connection = reader
        self._sent = _SentFile(_pickled(shared))
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(reader, self._sent.path, self.shared.name, threads or max(1, _usable_cores() // workers)),
        )

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        """Sends a call to the next free worker.

        Raises:
            ChildProcessError: a worker died, for want of memory for example. The future raises it as well.
        """
        try:
            inner = self._pool.submit(fn, *args, **kwargs)
        except BrokenProcessPool as error:
            raise _worker_died() from error
        return _Task(inner, (self._alive, self._sent))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers when their tasks are done."""
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            self._sent.remove()
            self._alive.close()
            self._reader.close()

    def __exit__(self, kind: object, error: object, trace: object) -> Literal[False]:
        if kind is not None:
            self._alive.close()
        self.shutdown(cancel_futures=kind is not None)
        return False


class RayExecutor(Executor):
    """Runs tasks on Ray (extra ``cluster``): on the cluster that this process is connected to, or else on this machine.

    Args:
        workers: how many tasks may run at a time on this machine, where Ray is not running yet; 1 or more.
        shared: what ``executor.shared.get()`` gives in a task; put into Ray's store once, unpickled once a worker.
        cores: that each task takes of the cluster.

    Raises:
        ArgumentError: no worker, or a `shared` that cannot be pickled.
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, workers: int, *, shared: Any = None, cores: float = 1) -> None:
        _check_workers(workers)
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", extra="cluster", purpose="work on a cluster") from error
        self._ray = ray
        self._started = not ray.is_initialized()
        if self._started:
            ray.init(
                address="local",
                num_cpus=max(1, round(workers * cores)),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
            )
        self.num_workers = workers
        self._cores = cores
        self._open: list[Any] = []
        name = f"{os.getpid()}-{time.monotonic_ns()}"
        self.shared = Shared(shared, reference=ray.put(_pickled(shared)), name=name)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_T]":
        """Sends a call to the cluster."""
        remote = self._ray.remote(_called).options(num_cpus=self._cores, max_retries=0)
        reference = remote.remote(fn, args, kwargs)
        self._open.append(reference)
        future: Future[_T] = reference.future()
        future.add_done_callback(lambda _: self._forget(reference))
        return future

    def _forget(self, reference: Any) -> None:
        with contextlib.suppress(ValueError):
            self._open.remove(reference)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Waits for the tasks or cancels them, and stops Ray if this object started it."""
        left = list(self._open)
        if cancel_futures:
            for reference in left:
                self._ray.cancel(reference, force=False)
        elif wait and left:
            self._ray.wait(left, num_returns=len(left))
        if self._started:
            self._ray.shutdown()
            self._started = False

    def __exit__(self, kind: object, error: object, trace: object) -> Literal[False]:
        self.shutdown(cancel_futures=kind is not None)
        return False


WorkExecutor: TypeAlias = InProcessExecutor | ProcessExecutor | RayExecutor
"""What :func:`open_executor` gives: an executor with `shared` and `num_workers`."""


@contextlib.contextmanager
def open_executor(
    workers: int = 1, *, kind: Literal["processes", "ray"] = "processes", shared: Any = None, threads: int | None = None
) -> Iterator[WorkExecutor]:
    """Opens an executor for a number of workers; one worker is this process itself, without a copy of anything.

    Args:
        workers: 1 or more.
        kind: where more than one worker runs. ``"ray"`` goes to Ray even for one.
        shared: what ``executor.shared.get()`` gives in a task.
        threads: of PyTorch in each process; None: the cores, divided. Other kinds leave threads as they are.

    Raises:
        ArgumentError: no worker, another kind, or a `shared` that cannot be sent to processes.
        MissingExtraError: Ray is not installed.

    Example:
        >>> with open_executor(1) as executor:
        ...     list(executor.map(abs, [-2, 3]))
        [2, 3]
    """
    check_executor(workers, kind)
    executor: WorkExecutor
    if kind == "ray":
        executor = RayExecutor(workers, shared=shared)
    elif workers == 1:
        executor = InProcessExecutor(shared=shared)
    else:
        executor = ProcessExecutor(workers, shared=shared, threads=threads)
    with executor:
        yield executor


def _check_workers(workers: object) -> None:
    if type(workers) is not int or workers < 1:
        raise ArgumentError(f"workers: expected a whole number of 1 or more, got {workers!r}")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_executor(workers: int, kind: str) -> None:
    """Refuses, before any work is done, what :func:`open_executor` would.

    Raises:
        ArgumentError: no worker, or another kind.
    """
    _check_workers(workers)
    if kind not in ("processes", "ray"):
        raise ArgumentError(f"kind: expected processes or ray, got {kind!r}")


def _pickled(value: object) -> bytes:
    # Plain pickle, and not that of multiprocessing: it would give workers the same memory to write into.
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except ArgumentError:  # an object's own word for it
        raise
    except Exception as error:  # whatever else an object's own pickling raises
        raise ArgumentError(
            f"shared: expected what can be sent to other processes: {type(error).__name__}: {error}; "
            "define classes and functions in an importable module, or use one worker"
        ) from error


class _SentFile:
    """Bytes on their way to workers, in a file that goes with this object.

    Not through the pipe that starts a process: one that dies before it has read it would leave us writing for ever.
    """

    def __init__(self, data: bytes) -> None:
        handle, self.path = tempfile.mkstemp(prefix="sparing-")
        self.remove = weakref.finalize(self, _remove, self.path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
        except BaseException:
            self.remove()
            raise


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        Path(path).unlink(missing_ok=True)


def _start_worker(reader: Connection, path: str, name: str, threads: int) -> None:
    import signal

    global _worker_bytes, _worker_name
    threading.Thread(target=_end_with_parent, args=(reader, path), daemon=True).start()
    _worker_bytes, _worker_name = Path(path).read_bytes(), name
    # Ctrl-C in a terminal reaches all; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _end_with_parent(reader: Connection, path: str) -> None:
    wait([reader])
    _remove(path)
    os._exit(1)


def _worker_died() -> ChildProcessError:
    return ChildProcessError(
        'a worker process died: out of memory? Use fewer workers. A script wants the usual if __name__ == "__main__":'
    )


class _Task(Future[_T]):
    """The future of a task in a pool, with our word for a dead worker."""

    def __init__(self, inner: "Future[_T]", kept: object) -> None:
        super().__init__()
        self._inner = inner
        self._kept = kept  # what workers need until the task is done, even if nobody holds the executor any more
        inner.add_done_callback(self._finish)

    def running(self) -> bool:
        """Whether the task has begun and not ended."""
        return self._inner.running()

    def cancel(self) -> bool:
        """Cancels the task if it has not begun."""
        return self._inner.cancel()

    def _finish(self, inner: "Future[_T]") -> None:
        if inner.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = inner.exception()
        if error is None:
            self.set_result(inner.result())
        else:
            self.set_exception(_worker_died() if isinstance(error, BrokenProcessPool) else error)


def _called(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


def _from_ray(reference: Any) -> bytes:
    import ray

    data: bytes = ray.get(reference)
    return data
