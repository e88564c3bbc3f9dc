"""Range rules: the step of each crossbar block of a weight matrix, and the codes that follow from it.

Symmetric sign-magnitude codes: −M .. M with M = 2**(bits − 1) − 1, one step for each block.

======================  =============================================================================================
rule                    step of a block
======================  =============================================================================================
``"max"``               max|e| / M
``"overlap"``           a weighted mix of the maxima of reused and of least used elements, / M; in the manner of C. Wang
                        et al., *EPIM*, arXiv 2311.07620, 2024 (their weights could not be read, :data:`REUSED_SHARE` is
                        this project's)
``"weighted_mse"``      the step of least Σ c(e)·(e − Q(e))², which is the squared error of the weight that is gathered
                        from the epitome (this project)
======================  =============================================================================================
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from sparing.errors import ArgumentError, ShapeError
from sparing.pim.crossbar import BlockGrid
from sparing.quant.ranges import check_finite, widen

__all__ = ["REUSED_SHARE", "RangeRule", "block_codes", "block_cuts", "block_steps", "max_code", "spread_steps"]

RangeRule = Literal["max", "overlap", "weighted_mse"]

REUSED_SHARE = 0.5
"""Share of the reused elements' maximum in the rule ``"overlap"``; the rest is that of the least used elements.

From 0.25 to 0.75 it made no difference beyond noise to a ResNet-8 of epitomes on CIFAR-10, at 3, 4 and 5 bits.
"""

# Up to this largest code (5 bits) the best step is found exactly; beyond, the error is smooth enough for a search.
_EXACT_CODE = 15
# Numbers sorted at once.
_SORTED = 1 << 22
_COARSE = [1.04 * 2 ** (-i / 12) for i in range(52)]
_FINE = [2 ** (i / 288) for i in range(-24, 25)]
_LLOYD_STEPS = 8


def max_code(bits: int) -> int:
    """M, the largest magnitude of a weight's code.

    Raises:
        ArgumentError: bits other than 2 to 16.
    """
    if not 2 <= bits <= 16:
        raise ArgumentError(f"bits: expected 2 to 16 for quantized weights, got {bits}")
    return int(2 ** (bits - 1)) - 1


def block_cuts(grid: BlockGrid, shape: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How a stored matrix is cut: its rows and columns in each block.

    They are the grid's own cuts. The matrix of a grouped convolution, rows of one group × columns of all, is cut along
    its columns once more: a piece for each copy of the grid, which holds one group or, on a diagonal, several.

    Args:
        grid: of the layer.
        shape: rows and columns of the matrix.

    Raises:
        ShapeError: a matrix that this grid does not cut.
    """
    rows, cols = shape
    whole, rest = divmod(cols, sum(grid.col_cuts))
    found: tuple[tuple[int, ...], tuple[int, ...]]
    on_diagonal = grid.copies > 1 or sum(grid.row_cuts) != rows
    if on_diagonal and len(grid.row_cuts) == len(grid.col_cuts) == 1 and sum(grid.row_cuts) % rows == 0:
        found = (rows,), grid.col_cuts * whole + ((rest,) if rest else ())
    else:
        found = grid.row_cuts, grid.col_cuts * grid.copies
    if sum(found[0]) != rows or sum(found[1]) != cols or len(found[1]) != len(grid.col_cuts) * grid.copies:
        raise ShapeError(
            f"matrix: expected the {sum(grid.row_cuts)} × {sum(grid.col_cuts)} of the grid"
            f"{f' ({grid.copies} copies)' if grid.copies > 1 else ''}, got {rows} × {cols}"
        )
    return found


@torch.no_grad()
def block_steps(matrix: Tensor, grid: BlockGrid, bits: int, rule: RangeRule, counts: Tensor | None = None) -> Tensor:
    """The step of each block of a matrix; no gradients.

    Args:
        matrix: `rows × columns`, floating, finite; an epitome's is ``epitome.flatten(1).T``.
        grid: of the layer.
        bits: 2 to 16.
        rule: see the table above.
        counts: uses of each element, shape of `matrix`, >= 0; None counts each once. Blocks whose elements all have the
            same count have the same step by ``"max"`` and ``"overlap"``.

    Returns:
        `r × c` steps > 0, float32 (float64 for a float64 matrix), on the matrix's device. For ``"weighted_mse"`` the
        best there are up to 5 bits, by sorting the values where codes change (n·M log n·M for n elements); beyond, the
        best of a search that is never worse than ``"max"``.

    Raises:
        ArgumentError: bits or rule unknown, or negative counts.
        DtypeError: not floating.
        NonFiniteError: NaN or infinity.
        ShapeError: a matrix that the grid does not cut, or counts of another shape.

    Example:
        >>> from sparing.pim.crossbar import CrossbarSize, block_grid
        >>> grid = block_grid(2, 1, 1, CrossbarSize(2, 2))
        >>> block_steps(torch.tensor([[2.0], [-3.0]]), grid, bits=3, rule="max").tolist()
        [[1.0]]
    """
    largest = max_code(bits)
    if rule not in get_args(RangeRule):
        raise ArgumentError(f"rule: expected one of {', '.join(get_args(RangeRule))}, got {rule!r}")
    if matrix.ndim != 2:
        raise ShapeError(f"matrix: expected rows × columns, got shape {tuple(matrix.shape)}")
    values = widen(matrix, name="matrix").abs()
    cuts = block_cuts(grid, (values.shape[0], values.shape[1]))
    # The maximum carries NaN and infinity on.
    blocks = _as_blocks(values, *cuts)
    maxima = blocks.amax(-1)
    check_finite(maxima, name="matrix")
    uses = None if counts is None or rule == "max" else _as_blocks(_checked(counts, values), *cuts)
    if rule == "overlap" and uses is not None:
        maxima = _mixed(blocks, uses)
    steps = maxima / largest
    if rule == "weighted_mse":
        weights = torch.ones_like(blocks) if uses is None else uses
        steps = _least_squares(blocks.flatten(0, 1), weights.flatten(0, 1), steps.flatten(), largest).view_as(steps)
    return steps.clamp_min_(torch.finfo(torch.float32).tiny)


@torch.no_grad()
def block_codes(matrix: Tensor, steps: Tensor, grid: BlockGrid, bits: int) -> Tensor:
    """Nearest codes of a matrix, ties to even; values beyond the range take the outermost code.

    Args:
        matrix: `rows × columns`, floating.
        steps: of :func:`block_steps`.
        grid: of the layer.
        bits: 2 to 16.

    Returns:
        `rows × columns` codes −M .. M, int8 up to 8 bits, else int16.

    Raises:
        ArgumentError, DtypeError, ShapeError: as :func:`block_steps`, or steps of another shape.
    """
    largest = max_code(bits)
    values = widen(matrix, name="matrix")
    codes = (values / spread_steps(steps, grid, (values.shape[0], values.shape[1]))).round_().clamp_(-largest, largest)
    return codes.to(torch.int8 if bits <= 8 else torch.int16)


def spread_steps(steps: Tensor, grid: BlockGrid, shape: tuple[int, int]) -> Tensor:
    """The step of each element.

    Args:
        steps: `r × c`.
        grid: of the layer.
        shape: rows and columns of the matrix.

    Returns:
        `rows × columns`.

    Raises:
        ShapeError: a matrix that the grid does not cut, or steps of another shape.
    """
    cuts = block_cuts(grid, shape)
    if steps.shape != (len(cuts[0]), len(cuts[1])):
        raise ShapeError(f"steps: expected shape {(len(cuts[0]), len(cuts[1]))}, got {tuple(steps.shape)}")
    rows, cols = (torch.tensor(cut, device=steps.device) for cut in cuts)
    return steps.repeat_interleave(rows, 0, output_size=shape[0]).repeat_interleave(cols, 1, output_size=shape[1])


def _checked(counts: Tensor, values: Tensor) -> Tensor:
    if counts.shape != values.shape:
        raise ShapeError(f"counts: expected the shape of the matrix, {tuple(values.shape)}, got {tuple(counts.shape)}")
    found = counts.to(values)
    check_finite(found, name="counts")
    if bool((found < 0).any()):
        raise ArgumentError("counts: expected numbers of 0 or more, got a negative one")
    return found


def _as_blocks(matrix: Tensor, row_cuts: tuple[int, ...], col_cuts: tuple[int, ...]) -> Tensor:
    """Copies a matrix into (r, c, elements of the largest block), smaller blocks filled up with zeros."""
    rows, cols = (_places(cuts, matrix.device) for cuts in (row_cuts, col_cuts))
    if len({*row_cuts}) > 1 or len({*col_cuts}) > 1:
        matrix = torch.nn.functional.pad(matrix, (0, 1, 0, 1))
    picked = matrix.index_select(0, rows.flatten()).index_select(1, cols.flatten())
    return picked.view(*rows.shape, *cols.shape).transpose(1, 2).flatten(2)


def _places(cuts: tuple[int, ...], device: torch.device) -> Tensor:
    """(cuts, longest) positions; beyond the end of a cut, the one past all."""
    length = torch.tensor(cuts)[:, None]
    place = torch.arange(max(cuts))
    return torch.where(place < length, length.cumsum(0) - length + place, sum(cuts)).to(device)


def _mixed(blocks: Tensor, uses: Tensor) -> Tensor:
    """Mixes the maxima of the least used elements of each block and of all others; elements of no use are left out."""
    used = uses > 0
    least = uses.masked_fill(~used, torch.inf).amin(-1, keepdim=True)
    single, reused = used & (uses == least), used & (uses > least)
    most, rest = ((blocks * which).amax(-1) for which in (reused, single))
    mixed = REUSED_SHARE * most + (1 - REUSED_SHARE) * rest
    return torch.where(reused.any(-1), mixed, blocks.amax(-1))


def _least_squares(values: Tensor, weights: Tensor, start: Tensor, largest: int) -> Tensor:
    """The best step of each row of (rows, n) magnitudes; the start's where nothing is better."""
    if largest > _EXACT_CODE:
        return _searched(values, weights, start, largest)
    at_once = max(1, _SORTED // (values.shape[1] * largest))
    parts = zip(values.split(at_once), weights.split(at_once), strict=True)
    best = torch.cat([_exact(part, uses, largest) for part, uses in parts])
    return torch.where(best > 0, best, start)


def _exact(values: Tensor, weights: Tensor, largest: int) -> Tensor:
    """The best steps, 0 for rows that weigh nothing.

    While the step falls, the code of an element goes from k − 1 to k where the step is |e| / (k − 1/2). Between two
    such places codes stay, and the least error is Σc·e² − B²/C at the step B/C, with B = Σc·|e|·k and C = Σc·k².
    Codes that are not the nearest ones are never better, so the largest B²/C of all belongs to the best step.
    """
    length = values.shape[1]
    halves = torch.arange(largest, device=values.device).to(values) + 0.5
    order = (values[:, None] / halves[:, None]).flatten(1).argsort(1, descending=True)
    element = order % length
    weight = weights.gather(1, element).double()
    # (k² − (k − 1)²) of each change of a code.
    squares = (weight * (order // length * 2 + 1)).cumsum_(1)
    products = weight.mul_(values.gather(1, element)).cumsum_(1)
    steps = products / squares.clamp_min(torch.finfo(torch.float64).tiny)
    return steps.gather(1, (steps * products).argmax(1, keepdim=True)).squeeze(1).to(values.dtype)


def _searched(values: Tensor, weights: Tensor, start: Tensor, largest: int) -> Tensor:
    """A coarse and a fine search over steps, then codes and step in turn; never worse than the start."""

    def codes(steps: Tensor) -> Tensor:
        return (values / steps[:, None]).round_().clamp_(max=largest)

    def error(steps: Tensor) -> Tensor:
        return codes(steps).mul_(steps[:, None]).sub_(values).square_().mul_(weights).sum(1)

    best = start = start.clamp_min(torch.finfo(start.dtype).tiny)
    least = error(best)
    for ratios in (_COARSE, _FINE):
        centre = start if ratios is _COARSE else best
        for ratio in ratios:
            found = error(centre * ratio)
            best = torch.where(found < least, centre * ratio, best)
            least = torch.minimum(found, least)
    for _ in range(_LLOYD_STEPS):
        code = codes(best)
        step = (weights * code * values).sum(1) / (weights * code * code).sum(1)
        found = error(step)
        best = torch.where(found < least, step, best)
        least = torch.minimum(found, least)
    return best
