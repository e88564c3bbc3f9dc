"""Latency of one image: layer by layer, and with all layers at work on its pixels as they come.

In the pipeline a pixel starts when the pixel before it in the same step is done and sent, and when the pixels that its
window needs are there; nothing ever waits for room in a buffer. With times D of a step's pixels in their order, their
sum S and the times at which inputs are there, a step's pixels are done at ``S + running max(there − (S − D))``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparing.pim.layers import NetworkShape
from sparing.pim.placement import Hops
from sparing.pim.step_cost import StepCost
from sparing.pim.steps import Step

__all__ = ["Latency", "latency_of", "network_steps"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Latency:
    """When an image is done.

    Attributes:
        pipelined_s: with all steps at work.
        serial_s: one step after the other.
        first_s, last_s: when a step's first and last pixel are done in the pipeline, by its name.
    """

    pipelined_s: float
    serial_s: float
    first_s: dict[str, float]
    last_s: dict[str, float]


def network_steps(network: NetworkShape) -> tuple[Step, ...]:
    """The steps of a network; of one that was put together by hand, its layers and what they read."""
    return network.steps or tuple(layer.as_step(layer.inputs) for layer in network.layers)


def latency_of(steps: Sequence[Step], costs: Mapping[str, StepCost], hops: Sequence[Hops]) -> Latency:
    """Runs the pixels of one image through the steps.

    Args:
        steps: in the order of their first call.
        costs: of the steps on the chip; one that is missing takes no time.
        hops: of each step.

    Returns:
        The latency. A step that reads its own result, or one of a later step, does not wait for it.
    """
    done: dict[str, FloatArray] = {}
    by_name = {step.name: step for step in steps}
    serial_s = 0.0
    for step, way in zip(steps, hops, strict=True):
        times = _pixel_times(step, costs.get(step.name), way)
        ends = np.cumsum(times)
        there = np.zeros_like(times)
        for name in step.inputs:
            if name in done:
                np.maximum(there, done[name][_needed(step, by_name[name])], out=there)
        done[step.name] = ends + np.maximum.accumulate(there - (ends - times))
        serial_s += float(ends[-1])
    return Latency(
        pipelined_s=max(float(ends[-1]) for ends in done.values()),
        serial_s=serial_s,
        first_s={name: float(ends[0]) for name, ends in done.items()},
        last_s={name: float(ends[-1]) for name, ends in done.items()},
    )


def _pixel_times(step: Step, cost: StepCost | None, hops: Hops) -> FloatArray:
    """Times of a step's pixels, row by row and call by call."""
    if cost is None:
        return np.zeros(step.num_pixels)
    corner, top, left, inside = (
        seconds + hops.inside * cost.merge_s + hops.outside * cost.send_s for seconds in cost.pixel_s
    )
    times = np.full(step.out_size, inside)
    times[0], times[:, 0], times[0, 0] = top, left, corner
    return np.tile(times.ravel(), step.num_calls)


def _needed(step: Step, source: Step) -> IntArray:
    """For each pixel of a step, the last pixel of a source that it needs, as a place in the source's order."""
    rows, cols = (_last_position(step, axis) for axis in (0, 1))
    (height, width), (source_height, source_width) = step.in_size, source.out_size
    if step.kind == "linear":
        vectors, pixels = step.out_size[0] * step.out_size[1], source_height * source_width
        within = _scaled(np.arange(vectors), vectors, pixels)
    elif height * width == source_height * source_width:
        within = (rows[:, None] * width + cols).ravel()
    else:
        # Something between them has changed the size (cropped, enlarged, pooled in a way that is not known).
        scaled = _scaled(rows, height, source_height), _scaled(cols, width, source_width)
        within = (scaled[0][:, None] * source_width + scaled[1]).ravel()
    calls = _scaled(np.arange(step.num_calls), step.num_calls, source.num_calls)
    return (calls[:, None] * (source_height * source_width) + within).ravel()


def _last_position(step: Step, axis: int) -> IntArray:
    """Along one axis, the last input position of each output position's window that is in the map."""
    window = step.dilation[axis] * (step.kernel[axis] - 1) + 1
    first = max(window - step.padding[axis], 1)
    ends = first + step.stride[axis] * np.arange(step.out_size[axis])
    return np.minimum(ends, step.in_size[axis]) - 1


def _scaled(positions: IntArray, size: int, source_size: int) -> IntArray:
    """The last of `source_size` places that a place among `size` covers."""
    return np.maximum(-(-(positions + 1) * source_size // size) - 1, 0)
