"""Spaces of architectures, as vectors of options for :class:`sparing.explore.Evolution`.

A vector has 32 sites: for the normal cell, then for the reduction cell, for each of the nodes 2 to 5, for each of its
two edges: the earlier node, then the primitive. As an array it is ``(2, 4, 2, 2)``.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparing.errors import ArgumentError, DtypeError, ShapeError
from sparing.nas.genotype import NUM_INNER, NUM_INPUTS, SPACES, Edge, Genotype, SpaceName

__all__ = ["SearchSpace"]

_SHAPE = (2, NUM_INNER, 2, 2)
_SITES = 2 * NUM_INNER * 2 * 2


class SearchSpace:
    """All genotypes of a space. Values of this class hold no state: use one from many threads.

    Args:
        name: ``"feature"`` or ``"weight"``.

    Attributes:
        name: as given.
        primitives: in the order of their options.
        num_options: of each of the 32 sites.

    Raises:
        ArgumentError: another name.

    Example:
        >>> space = SearchSpace("weight")
        >>> space.decode(space.encode(load_genotype("w-ftt-net"))) == load_genotype("w-ftt-net").canonical()
        True
    """

    def __init__(self, name: SpaceName) -> None:
        if name not in SPACES:
            raise ArgumentError(f"name: expected one of {', '.join(SPACES)}, got {name!r}")
        self.name: SpaceName = name
        self.primitives = SPACES[name]
        node = [(NUM_INPUTS + inner, len(self.primitives)) for inner in range(NUM_INNER)]
        self.num_options: tuple[int, ...] = tuple(n for _ in range(2) for pair in node for n in (*pair, *pair))

    @property
    def size(self) -> int:
        """Vectors there are; several stand for one genotype, see :meth:`Genotype.canonical`."""
        size = 1
        for options in self.num_options:
            size *= options
        return size

    def encode(self, genotype: Genotype) -> NDArray[np.int64]:
        """Turns a genotype into its vector; equivalent ones have the same, see :meth:`Genotype.canonical`.

        Returns:
            ``(32,)`` int64.

        Raises:
            ArgumentError: a genotype of another space, whose cells also preprocess their inputs in another way.
        """
        if genotype.space != self.name:
            raise ArgumentError(f"genotype: expected one of the {self.name} space, got {genotype.space}")
        genotype, index = genotype.canonical(), self.primitives.index
        cells = (genotype.normal, genotype.reduce)
        return np.array([n for cell in cells for node in cell for s, p in node for n in (s, index(p))], np.int64)

    def decode(self, vector: ArrayLike) -> Genotype:
        """Turns a vector into its genotype, in canonical form.

        Args:
            vector: ``(32,)`` or ``(2, 4, 2, 2)`` whole numbers, each below the site's number of options.

        Raises:
            DtypeError, ShapeError, ArgumentError: not whole numbers, not of such a shape, or out of range.
        """
        cells = self._checked(vector).reshape(_SHAPE).tolist()
        normal, reduce = (
            tuple(tuple(Edge(source, self.primitives[option]) for source, option in node) for node in cell)
            for cell in cells
        )
        return Genotype(space=self.name, normal=normal, reduce=reduce).canonical()

    def canonical(self, vector: ArrayLike) -> NDArray[np.int64]:
        """The one vector that stands for all of the same genotype; arguments and errors as :meth:`decode`."""
        return self.encode(self.decode(vector))

    def random(self, seed: int | np.random.Generator) -> Genotype:
        """Draws a genotype: each site's options are equally likely.

        Args:
            seed: 0 or more, the same gives the same genotype; or a generator, which is advanced.

        Raises:
            ArgumentError: a negative seed.
        """
        if not isinstance(seed, np.random.Generator):
            if seed < 0:
                raise ArgumentError(f"seed: expected 0 or more, got {seed}")
            seed = np.random.default_rng(seed)
        return self.decode(seed.integers(self.num_options, size=_SITES, dtype=np.int64))

    def neighbours(self, genotype: Genotype) -> Iterator[Genotype]:
        """Gives each genotype that differs in one choice, once, in the order of the sites.

        Raises:
            ArgumentError: a genotype of another space.
        """
        start = self.encode(genotype)
        seen = {genotype.canonical()}
        for site, options in enumerate(self.num_options):
            for option in range(options):
                vector = start.copy()
                vector[site] = option
                found = self.decode(vector)
                if found not in seen:
                    seen.add(found)
                    yield found

    def _checked(self, vector: ArrayLike) -> NDArray[np.int64]:
        array = np.asarray(vector)
        if array.dtype.kind not in "iu":
            raise DtypeError(f"vector: expected whole numbers, got dtype {array.dtype}")
        if array.shape not in ((_SITES,), _SHAPE):
            raise ShapeError(f"vector: expected shape ({_SITES},) or {_SHAPE}, got {array.shape}")
        array = array.astype(np.int64).reshape(-1)
        wrong = np.flatnonzero((array < 0) | (array >= np.array(self.num_options)))
        if len(wrong):
            site = int(wrong[0])
            raise ArgumentError(
                f"vector: expected 0 to {self.num_options[site] - 1} at site {site}, got {int(array[site])}"
            )
        return array
