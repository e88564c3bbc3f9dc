"""One layer on its crossbars, replayed bit plane by bit plane and input cycle by input cycle.

====================  ==================================================================================
on the chip           here
====================  ==================================================================================
input features, IFAT  the kernel's windows of a round's channels, a copy of bits
word lines, IFRT      which cells meet which feature: the rows of a matrix of 0 and 1
column sums           one integer matrix product for all cycles, planes and signs of a group of lines
ADC                   clipping and rounding of every sum
shift-add             sums by the powers of two of cycle and plane, positive minus negative
OFAT                  the output channels to which they are added, times the steps
====================  ==================================================================================

C. Wang et al., *EPIM*, arXiv 2311.07620, 2024.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sparing.pim.readout import WORD, Conversion, LayerProgram, Stage

__all__ = ["layer_sums"]

# Column sums held at once: they should stay in a core's cache.
_SUMS = 1 << 20


@torch.no_grad()
def layer_sums(program: LayerProgram, codes: Tensor) -> Tensor:
    """Computes one layer from the codes of its inputs.

    Args:
        program: of :func:`~sparing.pim.readout.layer_program`.
        codes: (n, in channels, height, width) integers of the mapping's activation bits in two's complement, of the
            layer's own size (a linear layer: height = width = 1, any n); not checked.

    Returns:
        (n, out channels, height, width), float32 or float64 as the program has it: sums times steps; the integer
        convolution where all steps are 1 and the ADC is ideal.
    """
    layer = program.mapping.layer
    size = (1, 1) if layer.kind == "linear" else layer.out_size
    pixels, count = size[0] * size[1], len(codes)
    out = torch.zeros(count, *size, program.width, dtype=program.dtype, device=codes.device)
    padded = _padded(codes, program, size)
    widest = max(stage.num_out for stage in program.stages) * len(program.planes) * len(program.cycles)
    at_once = max(1, _SUMS // widest)
    images = max(1, at_once // pixels)
    rows = size[0] if images > 1 else max(1, min(size[0], at_once // size[1]))
    for first in range(0, count, images):
        part = padded[first : first + images]
        bits = _cycles(part, program)
        for stage in program.stages:
            place = slice(stage.out_start, stage.out_start + stage.num_out)
            scale = stage.scale.to(program.dtype)
            maps = [_channels(bits, conversion) for conversion in stage.conversions]
            for top in range(0, size[0], rows):
                height = min(rows, size[0] - top)
                total = _stage_sums(stage, maps, program, (top, height, size[1]))
                target = out[first : first + images, top : top + height, :, place]
                target.add_(total.mul_(scale).view(target.shape))
    return out.repeat(1, 1, 1, program.mapping.tables.repeats)[..., : layer.out_channels].permute(0, 3, 1, 2)


def _stage_sums(stage: Stage, maps: Sequence[Tensor], program: LayerProgram, part: tuple[int, int, int]) -> Tensor:
    """(pixels, output channels) integers of some output rows: all conversions of a stage."""
    layer = program.mapping.layer
    found = []
    for conversion, own in zip(stage.conversions, maps, strict=True):
        windows = _windows(own, layer.kernel, layer.stride, layer.dilation, part)
        found.append(_shift_add(_column_sums(windows, conversion, program), program))
    for more in found[1:]:
        found[0].add_(more)
    return found[0]


def _padded(codes: Tensor, program: LayerProgram, size: tuple[int, int]) -> Tensor:
    """(n, height, width, channels) int32 with as many zeros around as the output needs."""
    layer = program.mapping.layer
    around: list[int] = []
    for axis in (1, 0):
        before = layer.padding[axis]
        needed = (size[axis] - 1) * layer.stride[axis] + layer.dilation[axis] * (layer.kernel[axis] - 1) + 1
        around += [before, needed - codes.shape[2 + axis] - before]
    # A stride may leave the last rows unread: then this cuts them off.
    return functional.pad(codes.int(), around).permute(0, 2, 3, 1)


def _cycles(codes: Tensor, program: LayerProgram) -> Tensor:
    """(cycles, n, height, width, channels): the bits of the codes, lowest first, uint8 for oneDNN, else float."""
    first = program.stages[0].conversions[0]
    dtype = torch.uint8 if first.packed is not None else first.weights.dtype
    if program.whole:
        return codes.to(dtype)[None]
    return torch.stack([((codes >> k) & 1).to(dtype) for k in range(len(program.cycles))])


def _channels(bits: Tensor, conversion: Conversion) -> Tensor:
    """The channels of a group of lines; uint8 ones are filled up and viewed as words."""
    picked = bits.index_select(-1, conversion.channels)
    if conversion.packed is None:
        return picked
    return functional.pad(picked, (0, -picked.shape[-1] % WORD)).view(torch.int64)


def _windows(
    maps: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    part: tuple[int, int, int],
) -> Tensor:
    """(cycles · pixels, kernel height · width · channels) of some output rows: (first, how many, width)."""
    top, height, width = part
    (kh, kw), (down, right) = kernel, stride
    if (kh, kw, down, right) == (1, 1, 1, 1):
        return maps[:, :, top : top + height].reshape(-1, maps.shape[-1])
    out = maps.new_empty(*maps.shape[:2], height, width, kh, kw, maps.shape[-1])
    for i in range(kh):
        first = top * down + i * dilation[0]
        lines = maps[:, :, first : first + (height - 1) * down + 1 : down]
        for j in range(kw):
            left = j * dilation[1]
            out[..., i, j, :] = lines[:, :, :, left : left + (width - 1) * right + 1 : right]
    return out.view(-1, kh * kw * maps.shape[-1])


def _column_sums(windows: Tensor, conversion: Conversion, program: LayerProgram) -> Tensor:
    """(cycles · pixels, N): what the ADC gives for each column sum, as codes."""
    adc, gain = program.adc, 1 / program.lsb
    if conversion.packed is not None:
        after = ("none", []) if adc.bits is None else ("hardtanh", [0.0, float(adc.max_code)])
        num = conversion.num_columns
        scale, zeros = torch.full((num,), gain), torch.zeros(num, dtype=torch.int32)
        bits, cells = windows.view(torch.uint8), conversion.packed
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            bits, 1.0, 0, cells, scale, zeros, None, 1.0, 0, torch.float32, *after, ""
        )
        return out if adc.bits is None or gain == 1 else out.round_()
    out = windows @ conversion.weights
    if adc.bits is None:
        return out
    # The gain in float32 also where the sums need float64: one definition of the ADC.
    out = out.float()
    if gain != 1:
        out.mul_(gain)
    return out.round_().clamp_(max=adc.max_code)


def _shift_add(sums: Tensor, program: LayerProgram) -> Tensor:
    """(pixels, columns): over cycles first, then over signs and planes."""
    sums = sums.to(program.dtype)
    if program.whole:
        return sums
    columns = sums.shape[1] // len(program.planes)
    weights = torch.tensor(program.cycles, dtype=sums.dtype, device=sums.device)
    over_cycles = torch.mv(sums.view(len(program.cycles), -1).T, weights).view(-1, len(program.planes), columns)
    total = over_cycles[:, 0] * program.planes[0]
    for place, weight in enumerate(program.planes[1:], 1):
        total.add_(over_cycles[:, place], alpha=weight)
    return total
