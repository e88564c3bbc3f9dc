"""Faults of devices that compute neural networks: models, injection, persistent maps. Needs the extra ``torch``.

A fault model (:class:`BitBias`, :class:`StuckAt`, …, or a sum ``a + b``) is a small value; :func:`inject` makes a
network faulty inside a ``with`` block, and :meth:`FaultModel.sample` draws the faults of one device to keep.
:func:`fixed_point_` makes a network compute in the 8-bit format that faults count in.
"""

from sparing.errors import MissingExtraError as _MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    raise _MissingExtraError("torch", extra="torch", purpose="sparing.faults") from _error

from sparing.faults.campaign import sweep
from sparing.faults.campaign_result import (
    CampaignConfig,
    CampaignResult,
    PointResult,
    compare,
    load_campaign_result,
)
from sparing.faults.fixed_point import calibrate_, fixed_point_, is_fixed_point, remove_fixed_point_
from sparing.faults.hardening import RangeClip, clip_ranges_, remove_range_clips_
from sparing.faults.injection import Injection, inject
from sparing.faults.maps import FaultMap, load_fault_map
from sparing.faults.models import (
    AnyFault,
    BitBias,
    BitFlip,
    FaultModel,
    FaultSum,
    GaussianNoise,
    ReciprocalNormalNoise,
    StuckAt,
    parse_fault,
)
from sparing.faults.normalization import recalibrate_norms_
from sparing.faults.sites import FaultSite, UnreachedWeightsWarning, fault_sites
from sparing.faults.statistics import Interval, PairedDifference
from sparing.faults.training import FaultTolerantStep, WeightClippingStep, clip_weights_
from sparing.faults.vulnerability import bit_vulnerability, layer_vulnerability

__all__ = [
    "AnyFault",
    "BitBias",
    "BitFlip",
    "CampaignConfig",
    "CampaignResult",
    "FaultMap",
    "FaultModel",
    "FaultSite",
    "FaultSum",
    "FaultTolerantStep",
    "GaussianNoise",
    "Injection",
    "Interval",
    "PairedDifference",
    "PointResult",
    "RangeClip",
    "ReciprocalNormalNoise",
    "StuckAt",
    "UnreachedWeightsWarning",
    "WeightClippingStep",
    "bit_vulnerability",
    "calibrate_",
    "clip_ranges_",
    "clip_weights_",
    "compare",
    "fault_sites",
    "fixed_point_",
    "inject",
    "is_fixed_point",
    "layer_vulnerability",
    "load_campaign_result",
    "load_fault_map",
    "parse_fault",
    "recalibrate_norms_",
    "remove_fixed_point_",
    "remove_range_clips_",
    "sweep",
]
