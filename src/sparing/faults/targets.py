"""Which fault of a sum hits which layer of a network, checked before anything is drawn or changed."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sparing.errors import ArgumentError
from sparing.faults.hits import Hits, draw_hits
from sparing.faults.models import FaultModel, SingleFault
from sparing.faults.sampling import fault_generator
from sparing.faults.sites import FaultSite, fault_sites, fixed_point_features, select_sites, sharing_layers

__all__ = ["Target", "find_targets"]


@dataclass(frozen=True)
class Target:
    """One fault in one layer.

    Attributes:
        site: the layer.
        part: place of the fault in its sum.
        fault: what hits it.
    """

    site: FaultSite
    part: int
    fault: SingleFault

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is hit: the stored weight, or the features of one image."""
        if self.fault.place == "weights":
            return self.site.stored_shape
        if self.site.feature_shape is None:
            raise AssertionError("unreachable: features without a known shape are no target")
        return self.site.feature_shape

    def draw(self, num: int, seed: int, draw: int, call: int) -> Hits:
        """Draws what happens to `num` numbers."""
        rng = fault_generator(seed, draw, self.site.name, part=self.part, call=call)
        return draw_hits(self.fault, num, self.site.num_macs, rng)


def find_targets(
    model: nn.Module,
    fault: FaultModel,
    *,
    example: Tensor | None,
    include: Sequence[str] | None,
    exclude: Sequence[str] | None,
) -> tuple[Target, ...]:
    """Finds what the parts of a fault hit: of weights all layers, of features the convolutions that run.

    A weight that layers share is stored once: its faults are those of the first of the chosen layers.

    Raises:
        ArgumentError: features whose ranges are not known, a part that hits nothing; see
            :func:`~sparing.faults.fault_sites` and :func:`~sparing.faults.sites.select_sites`.
        DtypeError, NonFiniteError, ShapeError: as :func:`~sparing.faults.fault_sites`.
    """
    hits_features = any(part.place == "features" for part in fault.parts)
    if hits_features and example is None and not fixed_point_features(model):
        raise ArgumentError(
            "example: expected a batch of images, since the ranges of this model's features are not known; give one, "
            "or use fixed_point_ first"
        )
    sites = select_sites(fault_sites(model, example if hits_features else None), include, exclude)
    sharing = sharing_layers(model, sites)
    found = []
    for part, one in enumerate(fault.parts):
        if one.place == "weights":
            hit = [site for site in sites if sharing[site.name][0] == site.name]
        else:
            hit = [site for site in sites if site.feature_shape is not None]
        if not hit:
            raise ArgumentError(
                f"fault: {one!r} hits features of convolutions, and none of the chosen layers is one that runs: "
                f"{', '.join(repr(site.name) for site in sites)}"
            )
        found += [Target(site, part, one) for site in hit]
    return tuple(found)
