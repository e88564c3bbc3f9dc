"""The stored weight of one layer while it is faulty: found, held in its number format, hit, and restored."""

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError
from sparing.faults.hits import Hits, hit_, put_back_
from sparing.faults.models import SingleFault
from sparing.faults.number_format import FixedPointWeight, exponent_of, step_of_exponent
from sparing.faults.sites import fault_sites, storage_of, stored_weight
from sparing.quant.packing import Int8Layer
from sparing.runs.modes import evaluating

__all__ = ["StoredWeight", "holds_faults", "rounded_layers"]

_HELD: dict[Hashable, int] = {}
"""S of what is in a context of faults, by :func:`~sparing.faults.sites.storage_of`.

An inner context counts on the range that was there before the outer one.
"""

_OWNERS: dict[Hashable, int] = {}
"""The threads of those contexts."""

_TAKING = threading.Lock()

_REDRAWN: set[Hashable] = set()
"""Those of them whose faults are drawn at each forward pass."""

_INT8_EXPONENT = 7
"""Steps of 1."""


def holds_faults(model: nn.Module) -> bool:
    """Whether weights of a model are in a context of faults."""
    return bool(_HELD) and any(storage_of(model.get_submodule(site.name)) in _HELD for site in fault_sites(model))


def rounded_layers(model: nn.Module) -> dict[Hashable, list[nn.Module]]:
    """Layers whose weights are rounded to the number format, by what is stored: some may share it."""
    found: dict[Hashable, list[nn.Module]] = {}
    for layer in model.modules():
        parts = _parametrizations(layer)
        if parts and isinstance(parts[-1], FixedPointWeight):
            found.setdefault(storage_of(layer), []).append(layer)
    return found


class StoredWeight:
    """One layer's weight as it is stored: a float tensor in its 8-bit format, or the codes of an int8 layer.

    Args:
        layer: with a stored weight.
        name: for messages.
        rounded: as of :func:`rounded_layers`.

    Attributes:
        num: of its numbers.

    Raises:
        ArgumentError: no weight that is known how to hit, one whose faults are drawn at each forward pass already, or
            one that another thread's faults are in.
        DtypeError: a layer that is quantized in a way that is not known.
        NonFiniteError: NaN or infinity in it.
    """

    def __init__(self, layer: nn.Module, name: str, rounded: Mapping[Hashable, Sequence[nn.Module]]) -> None:
        self._layer = layer
        tensor = stored_weight(layer)
        self.num = tensor.numel()
        self._int8 = layer if isinstance(layer, Int8Layer) else None
        self._key = storage_of(layer)
        self._name = name
        with _TAKING:
            self._is_nested = self._key in _HELD
            self._check_owner()
        self._num_hits = 0
        """Faults of a sum that are written now: behind the first −128 may be there."""
        if self._key in _REDRAWN:
            # What is below could not be drawn anew without taking this off first.
            raise ArgumentError(
                f"fault: the weight of {name} has faults that are drawn at each forward pass; open that context inside "
                "this one, or add the faults up (a + b)"
            )
        self._exponent = _INT8_EXPONENT
        self._roundings: list[tuple[FixedPointWeight, int]] = []
        """What rounds the tensor for each of the layers, and S of what it gets."""
        if self._int8 is None:
            what = f"weight of {name}"
            self._exponent = _HELD[self._key] if self._is_nested else exponent_of(tensor, what)
            for parts in map(_parametrizations, rounded.get(self._key, ())):
                given = self._exponent if len(parts) == 1 else exponent_of(_before_last(parts, tensor), what)
                self._roundings.append((cast("FixedPointWeight", parts[-1]), given))

    def hold_(self, *, adds_noise: bool, redrawn: bool) -> Callable[[], None]:
        """Keeps the number format whatever faults do to the numbers.

        Args:
            adds_noise: faults leave numbers that are no codes, which are not to be rounded.
            redrawn: faults are drawn at each forward pass.

        Returns:
            Called, it lets go.
        """
        with _TAKING:
            self._check_owner()
            if not self._is_nested:
                _HELD[self._key], _OWNERS[self._key] = self._exponent, threading.get_ident()
        packed = self._int8 is not None and self._int8.weight_codes is None
        before = [(rounding.held, rounding.passes) for rounding, _ in self._roundings]
        clip = self._clip_()
        if redrawn:
            _REDRAWN.add(self._key)
        for rounding, given in self._roundings:
            rounding.held = given if rounding.held is None else rounding.held
            rounding.passes = rounding.passes or adds_noise
        return partial(self._let_go_, before, packed, clip)

    def _check_owner(self) -> None:
        if _OWNERS.get(self._key, threading.get_ident()) != threading.get_ident():
            raise ArgumentError(
                f"model: the weight of {self._name} is in a context of faults in another thread, which would "
                "find other weights than it left; give each thread a copy of the model"
            )

    def hit_(self, hits: Hits, fault: SingleFault) -> Callable[[], None]:
        """Writes what a fault leaves.

        Returns:
            Called, it writes back what was there.
        """
        if not len(hits):
            return _nothing
        tensor = self._writable()
        step = step_of_exponent(self._exponent)
        on_grid = bool(self._roundings)
        upset = self._is_nested or self._num_hits > 0
        lowest = -128 if upset or on_grid or self._int8 is not None else -127
        before = hit_(tensor, hits, fault, step=step, lowest=lowest, on_grid=on_grid)
        torch.clear_autocast_cache()  # it holds weights as they were, in another type
        self._num_hits += 1
        return partial(self._put_back_, tensor, hits, before)

    def _writable(self) -> Tensor:
        if self._int8 is not None:
            # The next call packs the codes as they are then.
            self._int8.unpack_()
        return stored_weight(self._layer)

    def _put_back_(self, tensor: Tensor, hits: Hits, before: Tensor) -> None:
        # An int8 layer has had its codes packed, and unpacked into another tensor.
        put_back_(tensor if self._int8 is None else self._writable(), hits.positions, before)
        self._num_hits -= 1
        torch.clear_autocast_cache()

    @torch.no_grad()
    def _clip_(self) -> tuple[Tensor, Tensor] | None:
        """Brings weights that the format clips to −127: while it is held, −128 is what an upset has left."""
        if self._is_nested or all(given != self._exponent for _, given in self._roundings):
            return None
        tensor, least = stored_weight(self._layer).detach(), -127 * step_of_exponent(self._exponent)
        below = tensor < least
        if not bool(below.any()):
            return None
        before = tensor[below]
        tensor.masked_fill_(below, least)
        torch.clear_autocast_cache()
        return below, before

    def _let_go_(self, before: list[tuple[int | None, bool]], packed: bool, clip: tuple[Tensor, Tensor] | None) -> None:
        if clip is not None:
            with torch.no_grad():
                stored_weight(self._layer).detach()[clip[0]] = clip[1]
            torch.clear_autocast_cache()
        if not self._is_nested:
            with _TAKING:
                del _HELD[self._key], _OWNERS[self._key]
        _REDRAWN.discard(self._key)
        for (rounding, _), (held, passes) in zip(self._roundings, before, strict=True):
            rounding.held, rounding.passes = held, passes
        if self._int8 is not None and packed:
            self._int8.pack_()


def _parametrizations(layer: nn.Module) -> list[nn.Module]:
    if not parametrize.is_parametrized(layer, "weight"):
        return []
    return list(cast("parametrize.ParametrizationList", layer.parametrizations.weight))  # type: ignore[union-attr]


def _before_last(parts: list[nn.Module], tensor: Tensor) -> Tensor:
    """What the last parametrization gets."""
    for part in parts[:-1]:
        with evaluating(part), torch.no_grad():
            tensor = part(tensor)
    return tensor


def _nothing() -> None:
    """Nothing was hit."""
