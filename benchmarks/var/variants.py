"""What the quality stage measures: plans by section, each with what its row says beside the figures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from sparing.var.calibrate import FrontPoint, plan_front, uniform_plan
from sparing.var.config import LINEAR_KINDS
from sparing.var.formats import int8_precision, precision_plan
from sparing.var.plan import CompressionPlan, LinearFormat

if TYPE_CHECKING:
    from benchmarks.var.quality import Bench

GUIDANCES = (0.0, 1.5, 3.0, 4.0, 6.0)
PUBLISHED_TAUS = (0.95, 0.9, 0.85, 0.8, 0.7, 0.6)
FRONT_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PUBLISHED_FORM = "one τ, output shared everywhere"
FLOOR_REMOVED = 0.852
BITS = ((8, 8), (6, 6), (4, 8), (4, 6), (4, 4))
FC2_FORMATS = ("protected", "uniform")
FC2_DUAL_FORMATS = ("dual_range", "dual_sqrt")  # at four bits, where they matter


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row.

    Attributes:
        about: its first columns.
        plan: what is left out.
        guidance: strength; None: that of the smallest Fréchet distance.
        draw: draw images; False: only what known tokens tell.
        exact: in float32.
    """

    about: dict[str, Any]
    plan: CompressionPlan
    guidance: float | None = None
    draw: bool = True
    exact: bool = False


def guidance(bench: Bench) -> list[Variant]:
    """The model as it is at several strengths."""
    return [Variant({}, bench.empty(), guidance=strength) for strength in GUIDANCES]


def whole_plans(bench: Bench) -> list[Variant]:
    """The plan that ships, 8 bits as they are run, and float32."""
    shipped = [] if bench.shipped is None else [Variant({"name": "the shipped plan"}, bench.shipped)]
    return [
        *shipped,
        Variant({"name": "8 bits"}, bench.empty(precision=int8_precision(bench.model))),
        Variant({"name": "float32"}, bench.empty(), exact=True),
    ]


def front(bench: Bench) -> list[Variant]:
    """Plans with balanced windows and sharing chosen layer by layer, and the published form beside them."""
    plans: list[FrontPoint] = plan_front(bench.sensitivity())
    found = [
        Variant({"kind": "chosen by layer"}, next(p for p in plans if p.removed >= share).plan)
        for share in FRONT_SHARES
    ]
    published = bench.sensitivity("published windows")
    return found + [
        Variant({"kind": PUBLISHED_FORM, "tau": tau}, uniform_plan(published, tau=tau, first_shared=0))
        for tau in PUBLISHED_TAUS[::2]
    ]


def floor(bench: Bench) -> list[Variant]:
    """The plan of least predicted divergence that removes what the floor asks, at two strengths."""
    meets = [point for point in plan_front(bench.sensitivity()) if point.removed >= FLOOR_REMOVED]
    plan = min(meets, key=lambda p: p.predicted).plan
    return [Variant({"kind": "least divergence at 85.2 %"}, plan, guidance=strength) for strength in bench.strengths]


def tau_sweep(bench: Bench) -> list[Variant]:
    """Windows alone, found as published: one τ for each segment of each head."""
    found = bench.sensitivity("published windows")
    return [Variant({"tau": tau}, uniform_plan(found, tau=tau, first_shared=None)) for tau in PUBLISHED_TAUS]


def window_rules(bench: Bench) -> list[Variant]:
    """Both rules for windows, the same τ in all layers, without drawing: what they remove and what that costs."""
    rules = {"balanced": bench.sensitivity(), "segment": bench.sensitivity("published windows")}
    return [
        Variant({"rule": rule, "tau": tau}, uniform_plan(found, tau=tau, first_shared=None), draw=False)
        for rule, found in rules.items()
        for tau in found.config.taus
    ]


def sharing_variants(bench: Bench) -> list[Variant]:
    """Sharing the map or the output from each second scale on, in all layers."""
    return [
        Variant({"variant": variant, "first_scale": first}, uniform_plan(found, tau=None, first_shared=first))
        for variant, found in (("output", bench.sensitivity()), ("map", bench.sensitivity("shared map")))
        for first in range(0, len(bench.model.patch_nums), 2)
    ]


def bit_table(bench: Bench) -> list[Variant]:
    """Weights and activations in few bits, fc2 protected or in one of three formats; simulated."""
    found = []
    for weight_bits, activation_bits in BITS:
        for name in (*FC2_FORMATS, *(FC2_DUAL_FORMATS if (weight_bits, activation_bits) == (4, 4) else ())):
            form = None
            if name != "protected":
                form = LinearFormat(weight_bits=weight_bits, activation_bits=activation_bits, input_format=name)
            precision = precision_plan(
                bench.model, weight_bits=weight_bits, activation_bits=activation_bits, fc2=form, attention_bits=8
            )
            about = {"weight_bits": weight_bits, "activation_bits": activation_bits, "fc2": name}
            found.append(Variant(about, bench.empty(precision=precision)))
    return found


def seven_layers(bench: Bench) -> list[Variant]:
    """Four bits in one kind of linear layer at a time, without drawing; simulated."""
    found = []
    for kind in LINEAR_KINDS:
        form = LinearFormat(weight_bits=4, activation_bits=4) if kind == "fc2" else None
        precision = precision_plan(bench.model, weight_bits=4, activation_bits=4, kinds=(kind,), fc2=form)
        if precision.linears:
            found.append(Variant({"kind": kind}, bench.empty(precision=precision), draw=False))
    return found


SECTIONS = (whole_plans, front, floor, window_rules, tau_sweep, sharing_variants, seven_layers, bit_table)
"""In the order of what they tell; :func:`guidance` comes before them."""
