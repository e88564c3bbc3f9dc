"""BlockQuantizer: rounds a stored weight, one step for each crossbar block, with straight-through gradients.

Source of the gradient: Y. Bengio et al., *Estimating or Propagating Gradients Through Stochastic Neurons*, 2013;
nothing comes through where a value is clipped, as in S. Esser et al., *Learned Step Size Quantization*, 2020.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, ShapeError
from sparing.pim.block_ranges import RangeRule, block_codes, block_cuts, block_steps, max_code
from sparing.pim.crossbar import BlockGrid
from sparing.quant.ranges import keep_float32_, widen

__all__ = ["BlockQuantizer"]

# Finding them at every call, or at every 100th, trained no better (ResNet-8 of epitomes, 3 bits, CIFAR-10).
# Where weights grow fast, clipped ones wait for the next time.
_REFRESH_EVERY: dict[RangeRule, int] = {"weighted_mse": 10}


class BlockQuantizer(nn.Module):
    """Rounds a stored weight to sign-magnitude codes times the step of each crossbar block.

    It is an :class:`~sparing.pim.epitome.Epitome` 's ``quantizer``, or a parametrization of a dense weight by
    itself. In training mode the steps are found anew at every ``refresh_every``-th call; in evaluation they stay.
    Computed in float32 (float64 for float64), so that ``codes · steps`` are the values exactly.

    State dict: ``steps``, and ``calls``, which goes on where a training was interrupted.

    Args:
        stored: (Eo, Ei, p, q), or any weight whose first axis is the output; gives the first steps.
        grid: of the layer.
        bits: 2 to 16.
        rule: see :mod:`sparing.pim.block_ranges`.
        counts: uses of each element, shape of `stored`; None: each once.
        refresh_every: calls in training mode, at least 1. None: 1, but 10 for ``"weighted_mse"``, which sorts.

    Attributes:
        steps: (r, c) float32, > 0, whatever dtype the model is moved to.
        held: values in place of the rounded ones, as :func:`~sparing.pim.programmed.programmed` sets them; None.

    Raises:
        ArgumentError, DtypeError, NonFiniteError, ShapeError: as :func:`~sparing.pim.block_ranges.block_steps`.
    """

    steps: Tensor
    calls: Tensor
    counts: Tensor | None
    row_blocks: Tensor
    col_blocks: Tensor

    def __init__(
        self,
        stored: Tensor,
        grid: BlockGrid,
        bits: int,
        *,
        rule: RangeRule = "weighted_mse",
        counts: Tensor | None = None,
        refresh_every: int | None = None,
    ) -> None:
        super().__init__()
        refresh_every = _REFRESH_EVERY.get(rule, 1) if refresh_every is None else refresh_every
        if refresh_every < 1:
            raise ArgumentError(f"refresh_every: expected at least 1, got {refresh_every}")
        if counts is not None and counts.shape != stored.shape:
            raise ShapeError(f"counts: expected the shape of stored, {tuple(stored.shape)}, got {tuple(counts.shape)}")
        self.grid, self.bits, self.rule, self.refresh_every = grid, bits, rule, refresh_every
        self.max_code = max_code(bits)
        self.shape = tuple(stored.shape)
        matrix = _matrix(stored)
        cuts = block_cuts(grid, (matrix.shape[0], matrix.shape[1]))
        places = [torch.arange(len(cut)).repeat_interleave(torch.tensor(cut)) for cut in cuts]
        # Not saved: they follow from the design.
        self.register_buffer("row_blocks", places[0].to(stored.device), persistent=False)
        self.register_buffer("col_blocks", places[1].to(stored.device), persistent=False)
        self.register_buffer("counts", None if counts is None else _matrix(counts).to(stored.device), persistent=False)
        self.register_buffer("steps", block_steps(matrix, grid, bits, rule, self.counts).float())
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=stored.device))
        self._calls = 0
        self.held: Tensor | None = None

    @torch.no_grad()
    def refresh_(self, stored: Tensor) -> None:
        """Finds the steps of a stored weight by the rule.

        Raises:
            NonFiniteError: NaN or infinity; the steps are unchanged.
            ShapeError: another shape.
        """
        self._check(stored)
        self.steps.copy_(block_steps(_matrix(stored), self.grid, self.bits, self.rule, self.counts))

    def codes(self, stored: Tensor) -> Tensor:
        """What is put on the chip.

        Args:
            stored: as in :meth:`forward`.

        Returns:
            Rows × columns of the crossbars' matrix, −M .. M, int8 up to 8 bits, else int16.

        Raises:
            ShapeError: another shape.
        """
        self._check(stored)
        return block_codes(_matrix(stored), self.steps, self.grid, self.bits)

    def forward(self, stored: Tensor) -> Tensor:
        """Maps a stored weight to its rounded values, in its own shape and dtype."""
        if self.held is not None:
            return self.held
        if self.training:
            if self._calls % self.refresh_every == 0:
                self.refresh_(stored)
            self._calls += 1
            self.calls += 1
        self._check(stored)
        values = widen(stored.flatten(1), name="stored")
        steps = self.steps.T.index_select(0, self.col_blocks).index_select(1, self.row_blocks).to(values.dtype)
        # Clipped is what would round to a code beyond the outermost: the largest of a block is not, by ``"max"``.
        scaled = (values / steps).clamp(-self.max_code - 0.5, self.max_code + 0.5)
        codes = scaled.detach().round().clamp_(-self.max_code, self.max_code)
        # Exact: a number and its code are at most a factor 2 apart, or the code is 0.
        codes = scaled + (codes - scaled).detach()
        return (codes * steps).to(stored.dtype).view(stored.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A dense weight is stored as it is."""
        return weight

    def extra_repr(self) -> str:
        """What printing shows in the brackets."""
        blocks = " × ".join(map(str, self.steps.shape))
        return f"bits={self.bits}, rule={self.rule!r}, {blocks} blocks, refresh_every={self.refresh_every}"

    def _check(self, stored: Tensor) -> None:
        if tuple(stored.shape) != self.shape:
            raise ShapeError(f"stored: expected shape {self.shape}, got {tuple(stored.shape)}")

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = {"steps": self.steps}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        keep_float32_(self, before)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._calls = int(self.calls)


def _matrix(stored: Tensor) -> Tensor:
    """The crossbars' matrix: rows of input channels and kernel places × columns of output channels."""
    if stored.ndim < 2:
        raise ShapeError(f"stored: expected an axis of outputs and at least one of inputs, got {tuple(stored.shape)}")
    return stored.detach().flatten(1).T
