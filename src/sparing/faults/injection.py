"""Running a network while it is faulty: weights rewritten where they are hit, features as they come out of layers."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.faults.hits import Hits, hit_
from sparing.faults.maps import FaultMap, sample_map
from sparing.faults.models import FaultModel, SingleFault
from sparing.faults.number_format import FixedPointFeatures, step_of_exponent, writable
from sparing.faults.sampling import check_seed
from sparing.faults.sites import (
    check_model,
    fault_sites,
    fixed_point_features,
    register_before_corrections,
    select_sites,
    sharing_layers,
)
from sparing.faults.stored import StoredWeight, rounded_layers
from sparing.faults.targets import Target, find_targets

__all__ = ["Injection", "inject"]

_MOST_AHEAD = 1 << 21
"""Hits drawn before they are needed, 16 bytes each at most."""


@dataclass
class Injection:
    """What has happened in a context of faults so far.

    Attributes:
        hits: by layer, how many numbers were hit; those of weights once a drawing, those of features at each image.
    """

    hits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """One fault in one layer, and where its hits come from.

    Attributes:
        site, fault: the layer and what hits it.
        output: module behind which features are hit; None for weights.
        step: of the features, unless the module knows it; 0 for weights.
        shape: of what is hit; of features, those of an image.
        is_map: features must have that shape.
        hits: by number of images (1 for weights), numbers of all of them, and call.
    """

    site: str
    fault: SingleFault
    output: str | None
    step: float
    shape: tuple[int, ...]
    is_map: bool
    hits: Callable[[int, int, int], Hits]


@contextmanager
def inject(
    model: nn.Module,
    fault: FaultModel | FaultMap,
    *,
    seed: int = 0,
    draw: int = 0,
    transient: bool | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    example: Tensor | None = None,
    hold_ranges: bool = True,
) -> Iterator[Injection]:
    """Makes a network faulty inside a ``with`` block, and bit for bit what it was behind it, also after an exception.

    Nothing is copied but the numbers that are hit. Numbers are hit in their own format: the codes of an int8 layer,
    else 8 bits of the tensor's power-of-two range, which stays what it is without the faults. Blocks may be nested:
    the inner one meets what the outer one left (weights that are drawn at each forward pass have to be innermost).

    In training the gradients are those at the faulty weights, and pass through faulty features as if they were not;
    the running maxima of a fixed-point model's features stay what they are, unless told otherwise. The backward pass
    belongs into the block (PyTorch refuses it outside, since weights have changed since), the optimizer's step outside;
    inside, the model must not be moved, loaded or converted. A compiled model (``torch.compile``) is refused: hooks
    added later would be skipped silently.

    Which numbers are hit follows from the seed, the draw, the layer's name, the fault's place in the sum, and, for
    what is drawn anew, how often the layer was called in the block; from nothing else.

    Args:
        model: in training or evaluation mode, on any device.
        fault: what goes wrong, drawn here; or a map, the faults of a device that were drawn before.
        seed: 0 or more; of no matter with a map.
        draw: number of the drawing, 0 or more; of no matter with a map.
        transient: draw anew at each forward pass of the model (weights), at each call (features). None: features anew,
            weights once. False: both once, features then the same for every image.
        include: names of layers or patterns (``layer3.*``); None: all.
        exclude: the same, left out.
        example: images n × c × h × w, one forward pass of which says where and in which range features are; needed
            for faults of features unless it is a fixed-point model (or they are in a map).
        hold_ranges: leave the running maxima of a fixed-point model's features. False: in training mode they follow
            what a layer gives before its own features are hit, for training that never sees the network without faults.

    Yields:
        What is hit, as it is counted.

    Raises:
        ArgumentError: an unknown layer, a model without layers that can be hit, no example where one is needed, a
            compiled model, a negative seed, or a map that is to be transient.
        ConfigError: a map that was made for another network.
        DtypeError: a layer quantized in a way that is not known.
        NonFiniteError: NaN or infinity in weights, in the example or in its features.
        ShapeError: features that are not n × c × h × w, or of another size than those of a map.

    Example:
        >>> with inject(model, BitBias(p_m=1e-4), seed=7, example=images):
        ...     logits = model(images)
    """
    check_model(model)
    if parametrize._cache_enabled:
        raise ArgumentError(
            "model: torch.nn.utils.parametrize.cached() is in force, which keeps weights from before the faults; open "
            "it inside this block"
        )
    jobs = _jobs(model, fault, seed, draw, transient, include, exclude, example)
    weights: dict[str, list[_Job]] = {}
    features: dict[str, list[_Job]] = {}
    for job in jobs:
        (weights if job.output is None else features).setdefault(job.output or job.site, []).append(job)
    rounded = rounded_layers(model) if weights else {}
    stored = {name: StoredWeight(model.get_submodule(name), name, rounded) for name in weights}
    outputs = {name: model.get_submodule(name) for name in features}
    injection = Injection(dict.fromkeys((job.site for job in jobs), 0))

    def write(undo: ExitStack, call: int) -> None:
        for name, parts in weights.items():
            for job in parts:
                hits = job.hits(1, stored[name].num, call)
                injection.hits[name] += len(hits)
                undo.callback(stored[name].hit_(hits, job.fault))

    with ExitStack() as undo:
        for _, held in fixed_point_features(model) if hold_ranges else ():
            held.held += 1
            undo.callback(_release, held)
        hooks = [_FeatureHook(parts, injection) for parts in features.values()]
        if hooks:
            undo.callback(model.register_forward_pre_hook(_DrawnAhead(hooks)).remove)
        for module, hook in zip(outputs.values(), hooks, strict=True):
            undo.callback(register_before_corrections(module, hook))
        for name, parts in weights.items():
            adds_noise = not all(job.fault.whole for job in parts)
            undo.callback(stored[name].hold_(adds_noise=adds_noise, redrawn=bool(transient)))
        if transient and weights:
            redrawn = _Redrawn(write, undo.enter_context(ExitStack()))
            undo.callback(model.register_forward_pre_hook(redrawn).remove)
        else:
            write(undo, 0)
        yield injection


def _jobs(
    model: nn.Module,
    fault: FaultModel | FaultMap,
    seed: int,
    draw: int,
    transient: bool | None,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
    example: Tensor | None,
) -> list[_Job]:
    """What is to be done; checks everything and changes nothing."""
    check_seed("seed", seed)
    check_seed("draw", draw)
    if isinstance(fault, FaultMap):
        if transient:
            raise ArgumentError("transient: a map's faults are always the same; give the fault model to draw anew")
        fault.check(model)
    elif not isinstance(fault, FaultModel):
        raise DtypeError(f"fault: expected a fault model or a fault map, got {type(fault).__name__}")
    elif transient is False:
        fault = sample_map(model, fault, seed=seed, draw=draw, example=example, include=include, exclude=exclude)
    else:
        targets = find_targets(model, fault, example=example, include=include, exclude=exclude)
        return [_drawn(target, seed, draw) for target in targets]
    sites = fault_sites(model)
    chosen, sharing = {site.name for site in select_sites(sites, include, exclude)}, sharing_layers(model, sites)
    # A map keeps the faults of a weight that layers share with the first of them.
    stored = {name for name, group in sharing.items() if not chosen.isdisjoint(group)}
    jobs = _replayed(fault, chosen, stored)
    if not jobs:
        raise ArgumentError(f"include, exclude: the map has no faults in {', '.join(sorted(map(repr, chosen)))}")
    return jobs


def _drawn(target: Target, seed: int, draw: int) -> _Job:
    site, is_weight = target.site, target.fault.place == "weights"
    return _Job(
        site.name,
        target.fault,
        None if is_weight else site.output,
        _step(None if is_weight else site.exponent),
        target.shape,
        False,
        lambda _, num, call: target.draw(num, seed, draw, call),
    )


def _replayed(fault_map: FaultMap, chosen: set[str], stored: set[str]) -> list[_Job]:
    return [
        _Job(
            entry.site,
            fault_map.fault.parts[entry.part],
            entry.output,
            _step(entry.exponent),
            entry.shape,
            True,
            partial(_repeated, entry.hits),
        )
        for entry in fault_map.entries
        if entry.site in (stored if entry.output is None else chosen)
    ]


def _step(exponent: int | None) -> float:
    return 0.0 if exponent is None else step_of_exponent(exponent)


def _repeated(hits: Hits, images: int, num: int, _: int) -> Hits:
    return hits.repeated(images, num // max(images, 1))


class _Redrawn:
    """A hook before the model's forward pass: takes the weights' faults back and draws new ones.

    The first ones are there at once: for what calls layers past the model's own forward pass.
    """

    def __init__(self, write: Callable[[ExitStack, int], None], undo: ExitStack) -> None:
        self._write, self._undo, self._call = write, undo, 0
        write(undo, 0)

    def __call__(self, *_: Any) -> None:
        if self._call:
            self._undo.close()
            self._write(self._undo, self._call)
        self._call += 1


class _FeatureHook:
    """A hook behind a module: hits its output."""

    def __init__(self, jobs: list[_Job], injection: Injection) -> None:
        self._jobs, self._injection, self._call = jobs, injection, 0
        self._ahead: tuple[int, int] | None = None
        self._hits: list[Hits] = []
        self._per_image = math.prod(jobs[0].shape)

    def draw_ahead(self, images: int) -> int:
        """Draws what the next call needs, if it gets that many images of the size of the latest.

        Returns:
            How many hits.
        """
        self._draw(images, images * self._per_image)
        return sum(len(hits) for hits in self._hits)

    def __call__(self, module: nn.Module, _: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise DtypeError(f"features of {self._jobs[0].site}: expected a tensor, got {type(output).__name__}")
        if torch._C._current_graph_task_id() >= 0 and not self._jobs[0].is_map:
            raise ArgumentError(
                f"features of {self._jobs[0].site}: computed again in the backward pass (torch.utils.checkpoint), "
                "where faults would be others; turn checkpoints off, or use a fault map (transient=False)"
            )
        for job in self._jobs:
            if job.is_map and tuple(output.shape[1:]) != job.shape:
                raise ShapeError(
                    f"features of {job.site}: expected those of the map, n × {job.shape}, got {tuple(output.shape)}"
                )
        if self._ahead != (self._call, output.numel()):
            self._per_image = output.numel() // max(output.shape[0], 1)
            self._draw(output.shape[0], output.numel())
        rounding = module._modules.get("fixed_point")
        latest = rounding.latest if isinstance(rounding, FixedPointFeatures) else None
        features = writable(module, output) if any(map(len, self._hits)) else output
        for job, hits in zip(self._jobs, self._hits, strict=True):
            if len(hits):
                self._injection.hits[job.site] += len(hits)
                step = job.step if latest is None else latest
                hit_(features, hits, job.fault, step=step, lowest=-127 if latest is None else -128, on_grid=False)
        self._ahead, self._hits = None, []
        self._call += 1
        return features

    def _draw(self, images: int, num: int) -> None:
        self._ahead = self._call, num
        self._hits = [job.hits(images, num, self._call) for job in self._jobs]


class _DrawnAhead:
    """A hook before the model's forward pass: draws for all layers in one go, which spares the processor's caches."""

    def __init__(self, hooks: list[_FeatureHook]) -> None:
        self._hooks = hooks

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].ndim:
            return
        left = _MOST_AHEAD
        for hook in self._hooks:
            left -= hook.draw_ahead(inputs[0].shape[0])
            if left < 0:
                return


def _release(features: FixedPointFeatures) -> None:
    features.held -= 1
