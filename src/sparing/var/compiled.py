"""The same step in fewer launches: passes between the products fused by Inductor, and CUDA graphs, one for each scale.

Exact both: nothing is left out. A graph holds the kernels of the plain step in their order, and so gives its bits; a
fused pass rounds in other places, and is as near to the formulas as the plain one.

Graphs read and write fixed addresses. Batches of one size therefore take turns on the same memory: beginning one ends
the one before, which says so when it is asked to go on.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, ConfigError
from sparing.var.cache import EngineState, KVCache
from sparing.var.layer import EngineLayer, Passes

__all__ = ["FixedBatch", "Recorder", "StepGraphs", "fused_passes"]

_SIZES_KEPT = 2
_WARM_UPS = 2

_Run = Callable[[], Tensor]
_Layers = Callable[[Tensor, EngineState, int], Tensor]
Recorder = Callable[[_Run, torch.device], _Run]
"""Makes of a function that always works on the same memory one that does the same again."""


@functools.cache
def _fused() -> Passes:
    # Sizes are symbols: one compilation each for all scales and batches, but for sizes of 1.
    normed, gated, units = (torch.compile(function, dynamic=True) for function in Passes())
    return Passes(normed, gated, units)  # type: ignore[arg-type]  # the same signatures as before


@torch.inference_mode()
def fused_passes(layer: EngineLayer, device: torch.device) -> Passes:
    """Compiles what lies between the products.

    Args:
        layer: one of the engine's; compiled for its width, heads and dtype, which takes seconds.
        device: where it is.

    Returns:
        The passes, which have run once.

    Raises:
        ConfigError: PyTorch cannot compile here, for example without a C++ compiler.
    """
    heads, dim = layer.num_heads, layer.head_dim
    x = torch.zeros(2, 3, heads * dim, device=device)
    row = torch.zeros(2, 1, heads * dim, device=device)
    q, k, _ = x.to(layer.dtype).repeat(1, 1, 3).unflatten(-1, (3, heads, dim)).permute(2, 0, 3, 1, 4).unbind(0)
    try:
        passes = _fused()
        passes.normed(x, row, row, layer.dtype)
        passes.gated(x, x.to(layer.dtype), row, row, row, layer.dtype)
        if layer.normalised:
            passes.units(q, k, layer.factors)
    except (RuntimeError, ImportError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"fuse: PyTorch cannot compile for {device} here ({reason}); take fuse=False") from error
    return passes


class FixedBatch:
    """Memory at fixed addresses for one batch at a time, and the recorded steps on it.

    Args:
        state: its modulations and caches are kept.
        layers: runs all layers on a scale's tokens.
        can_record: whether a scale that has run once can be recorded; the others run as they are.
        record: see :data:`Recorder`.
    """

    def __init__(
        self, state: EngineState, *, layers: _Layers, can_record: Callable[[int], bool], record: Recorder
    ) -> None:
        self._state = replace(state, held=None)
        self._layers, self._can_record, self._record = layers, can_record, record
        self._inputs: dict[int, Tensor] = {}
        self._steps: dict[int, _Run] = {}
        self._owner: EngineState | None = None

    def lend_to_(self, state: EngineState) -> None:
        """Makes a batch the one that works on this memory."""
        for ours, theirs in zip(self._state.modulations, state.modulations, strict=True):
            for kept, new in zip(ours, theirs, strict=True):
                if kept is not new:
                    kept.copy_(new)
        state.modulations, state.caches, state.held = self._state.modulations, self._state.caches, self
        self._owner = state

    def check(self, state: EngineState) -> None:
        """Refuses a batch whose memory went to another.

        Raises:
            ArgumentError: it did.
        """
        if self._owner is not state:
            raise ArgumentError(
                "state: another batch of this size was begun since, and with CUDA graphs they share memory; finish one "
                "before the next, or compile with graphs=False"
            )

    def step(self, x: Tensor, scale: int) -> Tensor:
        """Runs the layers on a scale's tokens, (R, n, C); recorded when a scale runs for the first time.

        Raises:
            ConfigError: the scale cannot be recorded.
        """
        if scale in self._steps:
            self._inputs[scale].copy_(x)
        else:
            self._inputs[scale] = x.clone()
            self._steps[scale] = self._recorded(scale, x.device)
        # The graph's own output is written again at the next turn.
        return self._steps[scale]().clone()

    def _recorded(self, scale: int, device: torch.device) -> _Run:
        def run() -> Tensor:
            return self._layers(self._inputs[scale], self._state, scale)

        run()  # makes masks and tiles, which then stay
        if not self._can_record(scale):
            return run
        try:
            return self._record(run, device)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise ConfigError(f"graphs: scale {scale} cannot be recorded ({reason}); take graphs=False") from error


class StepGraphs:
    """The recorded steps of one engine, for the last few sizes of batches.

    Args:
        engine: looked at for where its weights are: moved ones make all recordings void.
        layers: runs all its layers on a scale's tokens.
        can_record: see :class:`FixedBatch`.
        record: by default into CUDA graphs.
    """

    def __init__(
        self, engine: nn.Module, *, layers: _Layers, can_record: Callable[[int], bool], record: Recorder | None = None
    ) -> None:
        self._engine, self._layers, self._can_record = engine, layers, can_record
        self._record = record or _CudaRecorder()
        self._batches: dict[tuple[int, bool], FixedBatch] = {}
        self._addresses: tuple[int, ...] = ()

    def lend_(self, state: EngineState, make_caches: Callable[[], list[list[KVCache]]]) -> None:
        """Gives a new batch its caches, and its modulations a place that stays.

        Args:
            state: of the batch.
            make_caches: called for a size that is not known yet.
        """
        tensors = itertools.chain(self._engine.parameters(), self._engine.buffers())
        addresses = tuple(t.data_ptr() for t in tensors)
        if addresses != self._addresses:
            self._batches.clear()
            self._addresses = addresses
        size = state.num_images, state.guided
        batch = self._batches.pop(size, None)
        if batch is None:
            while len(self._batches) >= _SIZES_KEPT:
                del self._batches[next(iter(self._batches))]
            state.caches = make_caches()
            batch = FixedBatch(state, layers=self._layers, can_record=self._can_record, record=self._record)
        self._batches[size] = batch  # the last one used comes last
        batch.lend_to_(state)


class _CudaRecorder:
    """Records into CUDA graphs, all in one pool of memory: their outputs are copied before the next one runs."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: _Run, device: torch.device) -> _Run:
        with torch.cuda.device(device):
            side, current = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(current)
            # Lazy beginnings (handles, kernels that are compiled or tried out) cannot be recorded.
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    run()
            current.wait_stream(side)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
