"""What each technique can save on a device: multiply-adds, bytes, and time by a roofline model. Modelled, not measured.

Every matrix product takes the longer of its arithmetic and its memory traffic; products follow one another. The time
of norms, sampling and launches is one more constant a product, so that small batches do not look free.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field

from sparing.errors import ArgumentError, ConfigError
from sparing.runs.documents import Settings
from sparing.var.config import VARConfig, linear_names
from sparing.var.cost import layer_pairs, model_cost
from sparing.var.plan import CompressionPlan, LinearFormat, PrecisionPlan, SharingPlan

__all__ = [
    "ADA_ONCE",
    "Deployment",
    "DeviceDescription",
    "TechniqueEstimate",
    "analyze_deployment",
    "probe_device",
    "technique_plans",
]

Precision = Literal["float32", "bfloat16", "int8"]
_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
_PROBE_SIZE, _PROBE_REPEATS, _PROBE_BYTES = 1024, 5, 1 << 27


_Positive = Annotated[float, Field(gt=0)]


class DeviceDescription(Settings):
    """A device.

    Attributes:
        name: for people.
        flops: multiply-adds times two a second, for each precision of a matrix product.
        bandwidth: bytes a second.
        memory_bytes: how much it holds.
        overhead_s: of each matrix product.
        measured: found by a probe, or given.

    Raises:
        ConfigError: a number that is not above 0, or an overhead below 0 (:meth:`of`).
    """

    name: str
    flops: dict[str, _Positive]
    bandwidth: _Positive
    memory_bytes: Annotated[int, Field(gt=0)]
    overhead_s: Annotated[float, Field(ge=0)] = 0.0
    measured: bool = False


@dataclass(frozen=True)
class Deployment:
    """How a model is run.

    Attributes:
        batch_size: images at once.
        guided: also without the class.
        precision: of weights, cache and products that the plan does not round.
        ada_once: adaptive norms once an image instead of once a scale.
        plan: what is left out.
    """

    batch_size: int = 1
    guided: bool = True
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    ada_once: bool = True
    plan: CompressionPlan | None = None


@dataclass(frozen=True)
class TechniqueEstimate:
    """One row of the analysis; all modelled.

    Attributes:
        technique: its name.
        macs: multiply-adds of the transformer, a batch.
        traffic_bytes: read and written, a batch.
        weight_bytes: kept weights of the linear layers.
        cache_bytes: keys and values.
        time_s: a batch.
        saved_s: against the row "none".
        fits: weights and cache fit the device's memory.
        pays: whether it saves at least one part in a hundred of the time or of the memory.
    """

    technique: str
    macs: int
    traffic_bytes: int
    weight_bytes: int
    cache_bytes: int
    time_s: float
    saved_s: float
    fits: bool
    pays: bool


def probe_device(device: torch.device | str = "cpu", *, name: str | None = None) -> DeviceDescription:
    """Measures a device for about a second.

    Args:
        device: a torch device.
        name: for people; None takes the device's own.

    Returns:
        Best of five products of 1024³ for each precision, bandwidth of a copy, and overhead of a tiny product.
    """
    device = torch.device(device)
    size = _PROBE_SIZE if device.type == "cpu" else 4 * _PROBE_SIZE
    a = torch.randn(size, size, device=device)
    flops = {}
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x = a.to(dtype)
        flops[precision] = 2 * size**3 / _best(device, partial(torch.mm, x, x))
    integers = (a * 20).clamp(-127, 127).to(torch.int8)
    flops["int8"] = 2 * size**3 / _best(device, lambda: torch._int_mm(integers, integers))
    source = torch.empty(_PROBE_BYTES // 4, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * _PROBE_BYTES / _best(device, lambda: target.copy_(source))
    tiny = torch.ones(1, 1, device=device)
    return DeviceDescription(
        name=name or _name(device),
        flops=flops,
        bandwidth=bandwidth,
        memory_bytes=_memory(device),
        overhead_s=_best(device, lambda: tiny @ tiny),
        measured=True,
    )


def _best(device: torch.device, work: Callable[[], object]) -> float:
    times = []
    for _ in range(_PROBE_REPEATS + 2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return max(min(times[2:]), 1e-9)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import os

    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def analyze_deployment(
    config: VARConfig,
    device: DeviceDescription,
    *,
    batch_size: int = 1,
    plan: CompressionPlan | None = None,
    precision: Literal["float32", "bfloat16"] = "bfloat16",
) -> list[TechniqueEstimate]:
    """Says what each technique saves, alone and all together.

    Args:
        config: the model.
        device: where it runs.
        batch_size: images at once.
        plan: whose windows are taken; None leaves windows out of the table.
        precision: of weights and products to begin with.

    Returns:
        A row "none", one for each technique, and "all".

    Raises:
        ArgumentError: a batch size below 1, or a device without a number for one of the precisions.
        ConfigError: a plan for another model.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size: expected at least 1, got {batch_size}")
    if missing := {precision, "int8"} - device.flops.keys():
        raise ArgumentError(f"device: flops of {device.name!r} has no number for {', '.join(sorted(missing))}")
    if plan is not None and plan.model != config:
        raise ConfigError("plan: made for a model with other settings")
    base = Deployment(batch_size, precision=precision, ada_once=False)
    none = _estimate("none", replace(base, plan=CompressionPlan(model=config, weights="")), device, config)
    rows = [none]
    for name, techniques in technique_plans(config, plan).items():
        once = name in (ADA_ONCE, "all")
        rows.append(_compared(_estimate(name, replace(base, ada_once=once, plan=techniques), device, config), none))
    return rows


ADA_ONCE = "adaptive norms once an image"
"""The one technique without a plan: the engine always does it."""

_INT8 = LinearFormat(weight_bits=8, activation_bits=8, real=True)


def technique_plans(config: VARConfig, plan: CompressionPlan | None = None) -> dict[str, CompressionPlan]:
    """Makes a plan for each technique alone, and one for all together.

    Args:
        config: the model.
        plan: whose windows are taken; None leaves windows out.
    """
    empty = CompressionPlan(model=config, weights="" if plan is None else plan.weights)
    int8 = PrecisionPlan(linears=dict.fromkeys(linear_names(config), _INT8))
    changes: dict[str, dict[str, object]] = {
        ADA_ONCE: {},
        "output shared across guidance": {"sharing": SharingPlan(variant="output", first_scale=(0,) * config.depth)},
        "int8 linear layers": {"precision": int8},
        "int8 keys and values": {"precision": PrecisionPlan(kv_bits=8)},
    }
    if plan is not None and plan.windows is not None:
        changes["windows"] = {"windows": plan.windows}
    together = {key: value for update in changes.values() for key, value in update.items()}
    changes["all"] = together | {"precision": int8.model_copy(update={"kv_bits": 8})}
    return {name: empty.model_copy(update=update) for name, update in changes.items()}


def _compared(row: TechniqueEstimate, none: TechniqueEstimate) -> TechniqueEstimate:
    saved = none.time_s - row.time_s
    memory = 1 - (row.weight_bytes + row.cache_bytes) / (none.weight_bytes + none.cache_bytes)
    return replace(row, saved_s=saved, pays=saved > none.time_s / 100 or memory > 1 / 100)


@dataclass
class _Sum:
    macs: int = 0
    traffic: int = 0
    time_s: float = 0.0


def _estimate(name: str, run: Deployment, device: DeviceDescription, config: VARConfig) -> TechniqueEstimate:
    plan = run.plan or CompressionPlan(model=config, weights="")
    total = _Sum()

    def product(rows: int, inputs: int, outputs: int, precision: str, weights: int) -> None:
        macs = rows * inputs * outputs
        size = _BYTES[precision]
        traffic = weights * size + rows * (inputs + outputs) * _BYTES[run.precision]
        total.macs += macs
        total.traffic += traffic
        total.time_s += max(2 * macs / device.flops[precision], traffic / device.bandwidth) + device.overhead_s

    formats = {} if plan.precision is None else plan.precision.linears
    width, branches, weight_bytes = config.embed_dim, 2 if run.guided else 1, 0
    shapes = {"qkv": (width, 3 * width), "proj": (width, width)}
    shapes |= {"fc1": (width, config.mlp_dim), "fc2": (config.mlp_dim, width)}
    pairs = [layer_pairs(config, plan, layer) for layer in range(config.depth)]
    kv_bytes = 1 if plan.precision is not None and plan.precision.kv_bits else _BYTES[run.precision]
    for layer in range(config.depth):
        of_layer = {
            kind: "int8" if f"blocks.{layer}.{kind}" in formats else run.precision for kind in (*shapes, "ada_lin")
        }
        weight_bytes += sum(a * b * _BYTES[of_layer[kind]] for kind, (a, b) in shapes.items())
        if not config.shared_adaln:
            weight_bytes += 6 * width * width * _BYTES[of_layer["ada_lin"]]
        for scale, tokens in enumerate(config.scale_sizes):
            shared = plan.shares(layer, scale) and plan.sharing is not None and plan.sharing.variant == "output"
            for kind, (inputs, outputs) in shapes.items():
                halves = 1 if shared and kind in ("qkv", "proj") else branches
                product(run.batch_size * halves * tokens, inputs, outputs, of_layer[kind], inputs * outputs)
            halves = run.batch_size * (1 if shared else branches)
            macs = halves * 2 * config.head_dim * pairs[layer][scale]
            traffic = halves * 2 * config.scale_starts[scale + 1] * width * kv_bytes
            total.macs += macs
            total.traffic += traffic
            total.time_s += max(2 * macs / device.flops[run.precision], traffic / device.bandwidth) + device.overhead_s
            if not config.shared_adaln and (scale == 0 or not run.ada_once):
                product(run.batch_size * branches, width, 6 * width, of_layer["ada_lin"], 6 * width * width)
    weight_bytes += 2 * width * width * _BYTES[run.precision]
    if config.shared_adaln:
        weight_bytes += 6 * width * width * _BYTES[run.precision]
        product(run.batch_size * branches, width, 6 * width, run.precision, 6 * width * width)
    ends = {"word_embed": (config.z_channels, width), "head": (width, config.vocab_size)}
    of_ends = {kind: "int8" if kind in formats else run.precision for kind in ends}
    weight_bytes += sum(a * b * _BYTES[of_ends[kind]] for kind, (a, b) in ends.items())
    for scale, tokens in enumerate(config.scale_sizes):
        if scale == 0 or not run.ada_once:
            product(run.batch_size * branches, width, 2 * width, run.precision, 2 * width * width)
        for kind, (inputs, outputs) in ends.items():
            # The first token is the class; the others are embedded once for both branches.
            # Guidance begins behind the first scale, and embeddings of words do.
            halves = (branches if scale else 1) if kind == "head" else min(scale, 1)
            if halves:
                product(run.batch_size * halves * tokens, inputs, outputs, of_ends[kind], inputs * outputs)
    cache = run.batch_size * model_cost(config, plan, guided=run.guided, dtype=run.precision).cache_bytes
    fits = weight_bytes + cache <= device.memory_bytes
    return TechniqueEstimate(
        name, total.macs, total.traffic, weight_bytes, cache, total.time_s, 0.0, fits=fits, pays=False
    )
