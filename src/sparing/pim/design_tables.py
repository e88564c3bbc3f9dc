"""Tables of what each layer may become and what each choice costs: built once, then designs are added up from them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparing.errors import ArgumentError, NonFiniteError
from sparing.explore.breeding import check_vectors
from sparing.explore.pareto import pareto_front
from sparing.pim.crossbar import CrossbarSize, num_planes
from sparing.pim.design import LayerDesign, NetworkDesign, layer_grid
from sparing.pim.error_proxy import error_proxy
from sparing.pim.layers import LayerShape, NetworkShape

__all__ = ["DesignTables", "LayerCost", "design_tables"]

LayerCost = Callable[[LayerShape, LayerDesign], Mapping[str, float]]
"""Further columns for a layer as designed: ``{"energy_j": …, …}``. Each adds up over layers, or is for
:meth:`DesignTables.largest` and :meth:`DesignTables.within`."""

# Vectors looked up at once: their sums stay in the cache.
_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class DesignTables:
    """What each layer may become, and what that costs.

    A design is a vector with the number of an option for each layer.

    Attributes:
        layers: names.
        options: for each layer.
        columns: from a name to ``(sites, most options)`` float64, infinite behind a layer's last option. There is
            always ``"crossbars"``.
        activation_bits: of the designs.
    """

    layers: tuple[str, ...]
    options: tuple[tuple[LayerDesign, ...], ...]
    columns: Mapping[str, NDArray[np.float64]]
    activation_bits: int = 9

    @property
    def num_options(self) -> NDArray[np.int64]:
        """``(sites,)``."""
        return np.array([len(of_layer) for of_layer in self.options], np.int64)

    @property
    def num_designs(self) -> int:
        """How many designs there are."""
        return math.prod(len(of_layer) for of_layer in self.options)

    def column(self, name: str) -> NDArray[np.float64]:
        """A column by its name.

        Raises:
            ArgumentError: there is none; says which there are.
        """
        if name not in self.columns:
            raise ArgumentError(f"tables: expected one of the columns {', '.join(self.columns)}, got {name!r}")
        return self.columns[name]

    def totals(self, choices: ArrayLike, names: Sequence[str]) -> NDArray[np.float64]:
        """Adds up the costs of designs.

        Args:
            choices: ``(n, sites)`` whole numbers, an option for each layer.
            names: of columns.

        Returns:
            ``(n, len(names))`` float64.

        Raises:
            ArgumentError: an unknown column, or an option that is not there.
            DtypeError, ShapeError: no array of whole numbers of this shape.
        """
        vectors = check_vectors(choices, self.num_options, name="choices")
        return self.adder(names)(vectors)

    def adder(self, names: Sequence[str]) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
        """:meth:`totals` of these columns, for choices that are known to be good: nothing is checked.

        Raises:
            ArgumentError: an unknown column.
        """
        sites, most = len(self.layers), max(len(of_layer) for of_layer in self.options)
        # All costs of an option are fetched as one item; NumPy is quickest where that has 8, 16, 32, ... bytes.
        width = 1 << max(0, len(names) - 1).bit_length()
        table = np.zeros((sites, most, width))
        for at, name in enumerate(names):
            table[:, :, at] = self.column(name)
        items = table.view(f"V{8 * width}").ravel()
        starts = np.arange(sites)[:, None] * most

        def add(choices: NDArray[np.int64]) -> NDArray[np.float64]:
            totals = np.empty((len(choices), width))
            for start in range(0, len(choices), _AT_ONCE):
                part = choices[start : start + _AT_ONCE]
                # mode: without it every place is checked first.
                found = np.take(items, part.T + starts, mode="clip")
                found.view(np.float64).sum(axis=0, out=totals[start : start + len(part)].reshape(-1))
            return totals[:, : len(names)]

        return add

    def largest(self, name: str) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
        """A cost that does not add up: the largest of a column over the layers, such as the slowest layer's time.

        Args:
            name: of a column.

        Returns:
            Maps ``(n, sites)`` choices to ``(n,)``; nothing is checked.

        Raises:
            ArgumentError: an unknown column.
        """
        table, sites = self.column(name), np.arange(len(self.layers))
        return lambda choices: table[sites, choices].max(axis=1)

    def design(self, choices: Sequence[int] | NDArray[np.int64], *, notes: str = "") -> NetworkDesign:
        """The design of one vector.

        Raises:
            ArgumentError, DtypeError, ShapeError: as :meth:`totals`.
        """
        vector = check_vectors(np.asarray(choices)[None], self.num_options, name="choices")[0].tolist()
        layers = {name: self.options[site][vector[site]] for site, name in enumerate(self.layers)}
        return NetworkDesign(layers=layers, activation_bits=self.activation_bits, notes=notes)

    def choices_of(self, design: NetworkDesign) -> tuple[int, ...]:
        """The vector of a design.

        Raises:
            ArgumentError: a layer is not in one of them, or is designed in a way that is not among its options.
        """
        if set(design.layers) != set(self.layers):
            odd = sorted(set(design.layers) ^ set(self.layers))
            raise ArgumentError(f"design: expected the layers of the tables, differs in {', '.join(odd[:5])}")
        found = []
        for name, options in zip(self.layers, self.options, strict=True):
            if design.layers[name] not in options:
                raise ArgumentError(f"design: {name}: {design.layers[name]} is not among its {len(options)} options")
            found.append(options.index(design.layers[name]))
        return tuple(found)

    def without_beaten(self, names: Sequence[str]) -> "DesignTables":
        """Leaves out options that another one of the same layer beats or equals in all of these columns.

        No best design is lost where objectives and limits are these columns, or never fall when one of them rises.

        Args:
            names: of columns; all others stay in the tables too.

        Raises:
            ArgumentError: an unknown column, or none.
        """
        if not names:
            raise ArgumentError("names: expected at least one column, got none")
        picked = [self.column(name) for name in names]
        kept = [
            pareto_front(np.stack([column[site, :count] for column in picked], axis=1))
            for site, count in enumerate(self.num_options)
        ]
        return self._picked(kept)

    def within(self, name: str, most: float) -> "DesignTables":
        """Leaves out options that exceed a limit on a column, for what no single layer may exceed, such as a buffer.

        Args:
            name: of a column.
            most: the largest value allowed.

        Raises:
            ArgumentError: an unknown column, or a layer of which all options exceed the limit.
        """
        column = self.column(name)
        kept = [np.flatnonzero(column[site, :count] <= most) for site, count in enumerate(self.num_options)]
        for site, of_site in enumerate(kept):
            if not len(of_site):
                raise ArgumentError(
                    f"{name}: expected at least {column[site].min():g}, the least of {self.layers[site]}, got {most:g}"
                )
        return self._picked(kept)

    def _picked(self, kept: Sequence[NDArray[np.intp]]) -> "DesignTables":
        """Only these options of each layer."""
        options = tuple(tuple(self.options[site][at] for at in of_site) for site, of_site in enumerate(kept))
        columns = {
            name: _padded([column[site, of_site] for site, of_site in enumerate(kept)])
            for name, column in self.columns.items()
        }
        return DesignTables(self.layers, options, columns, self.activation_bits)


def design_tables(
    network: NetworkShape,
    crossbar: CrossbarSize,
    options: Mapping[str, Sequence[LayerDesign]],
    *,
    cost: LayerCost | None = None,
    error: Callable[[LayerShape, LayerDesign], float] | None = None,
    activation_bits: int = 9,
) -> DesignTables:
    """Builds the tables: columns ``"crossbars"``, ``"error"`` and those of a cost model.

    Args:
        network: the layers.
        crossbar: the size.
        options: of the layers by name, as :func:`~sparing.pim.layer_options.network_options` gives them. Layers that
            are not named stay off the crossbars.
        cost: gives further columns, the same for all; called once for each option.
        error: gives the column ``"error"``; None for :func:`~sparing.pim.error_proxy.error_proxy` without a model.
        activation_bits: of the designs, 1 to 16.

    Raises:
        ArgumentError: no layers, a layer that is not there or has no options, an epitome where none can be, or columns
            that are missing, have a name that is taken, or are negative.
        NonFiniteError: a cost that is NaN or infinite.
        ShapeError: an epitome that does not fit its layer.
    """
    if not options:
        raise ArgumentError("options: expected those of at least one layer, got none")
    proxy = error or error_proxy()
    known = {layer.name: layer for layer in network.layers}
    columns: dict[str, list[list[float]]] = {}
    for site, (name, of_layer) in enumerate(options.items()):
        if name not in known or not of_layer:
            raise ArgumentError(f"options: {name}: expected a mapped layer of the network with at least one option")
        for option in of_layer:
            NetworkDesign(layers={name: option}).check(network)
            row = _row(known[name], option, crossbar, proxy, cost)
            if columns and set(columns) != set(row):
                raise ArgumentError(f"cost: expected the columns {sorted(columns)} of every layer, got {sorted(row)}")
            for column, value in row.items():
                of_sites = columns.setdefault(column, [[] for _ in options])
                of_sites[site].append(value)
    padded = {column: _padded([np.array(v) for v in values]) for column, values in columns.items()}
    return DesignTables(tuple(options), tuple(map(tuple, options.values())), padded, activation_bits)


def _row(
    layer: LayerShape,
    option: LayerDesign,
    crossbar: CrossbarSize,
    error: Callable[[LayerShape, LayerDesign], float],
    cost: LayerCost | None,
) -> dict[str, float]:
    blocks = layer_grid(layer, option, crossbar).num_blocks
    row = {"crossbars": float(blocks * num_planes(option.bits)), "error": float(error(layer, option))}
    more = {name: float(value) for name, value in (cost(layer, option) if cost else {}).items()}
    if set(row) & set(more):
        raise ArgumentError(f"cost: expected other columns than {sorted(row)}, got {sorted(more)}")
    for name, value in (row | more).items():
        if not math.isfinite(value):
            raise NonFiniteError(f"cost: {layer.name}: {name}: expected a finite number, got {value}")
        if value < 0:
            raise ArgumentError(f"cost: {layer.name}: {name}: expected 0 or more, got {value}")
    return row | more


def _padded(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    table = np.full((len(values), max(map(len, values))), np.inf)
    for site, of_site in enumerate(values):
        table[site, : len(of_site)] = of_site
    return table
