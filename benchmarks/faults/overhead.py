"""What faults add to a forward pass of ResNet-20, all columns taking turns.

Ours against the same network without faults. Rivals beside it, MRFI 2.1.0 and PyTorchFI 0.6.0, on the float network,
as they are meant to be used; what they inject differs, and their columns say what.
"""

from __future__ import annotations

import importlib.util
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from sparing.faults import BitBias, BitFlip, FaultModel, StuckAt, fixed_point_, inject
from sparing.vision import resnet20

Run = Callable[[], Any]
FAULTS: dict[str, tuple[FaultModel, dict[str, Any]]] = {
    "bit bias, p = 1e-4": (BitBias(p=1e-4), {}),
    "bit bias, p = 1e-3": (BitBias(p=1e-3), {}),
    "bit bias, p = 1e-2": (BitBias(p=1e-2), {}),
    "bit bias, p_m = 1e-5 a product": (BitBias(p_m=1e-5), {}),
    "bit flips of features, 1e-3 a bit": (BitFlip(p=1e-3, where="features"), {}),
    "stuck cells, 1 %, one map a context": (StuckAt(rate=0.01), {}),
    "stuck bits, 1 %, drawn anew at each pass": (StuckAt(rate=0.01, form="bit"), {"transient": True}),
}
_MRFI = """
faultinject:
  - type: activation_out
    quantization: {{method: SymmericQuantization, dynamic_range: 4, bit_width: 8}}
    enabled: True
    selector: {{method: RandomPositionByRate, poisson: True, rate: {rate}}}
    error_mode: {{method: IntSignBitFlip, bit_width: 8}}
    module_type: [Conv2d]
"""
_SHARED = 5000


def measure(*, batch_size: int, rounds: int, tiny: bool) -> dict[str, Any]:
    """Seconds of a pass in each column, best, median and all, and ratios of neighbours in one round."""
    logging.disable(logging.INFO)  # PyTorchFI logs every fault
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 if tiny else batch_size, 3, 32, 32, generator=generator)
    rows: list[dict[str, Any]] = []
    for precision in ("float32", "bfloat16"):
        rows += _columns(x, rounds, precision)
    return {"batch_size": len(x), "rows": rows}


def _columns(x: torch.Tensor, rounds: int, precision: str) -> list[dict[str, Any]]:
    plain, fixed = resnet20(seed=0).eval(), resnet20(seed=0).eval()
    fixed_point_(fixed, x)

    def forward(net: Any) -> None:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            net(x)

    runs: dict[str, tuple[str, Run, FaultModel | None, dict[str, Any]]] = {
        "float network": ("base", lambda: forward(plain), None, {}),
        "fixed point, no faults": ("base", lambda: forward(fixed), None, {}),
    }
    runs |= {f"ours: {name}": ("ours", lambda: forward(fixed), *one) for name, one in FAULTS.items()}
    if precision == "float32":
        runs |= {name: ("rival", run, None, {}) for name, run in _rivals(x, forward).items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    hits: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, (_, run, fault, options) in runs.items():
            with ExitStack() as stack:
                if fault is not None:
                    injection = stack.enter_context(inject(fixed, fault, seed=0, draw=number, **options))
                start = time.perf_counter()
                run()
                taken = time.perf_counter() - start
                if fault is not None:
                    hits[name] = sum(injection.hits.values())
            if number:  # the first one warms up
                seconds[name].append(taken)
    rows = []
    for name, (kind, _, _, _) in runs.items():
        base = seconds[
            "float network" if kind == "rival" or name == "fixed point, no faults" else "fixed point, no faults"
        ]
        ratios = [mine / theirs for mine, theirs in zip(seconds[name], base, strict=True)]
        rows.append(
            {
                "column": name,
                "kind": kind,
                "precision": precision,
                "best_s": min(seconds[name]),
                "median_s": statistics.median(seconds[name]),
                "against_base_best": min(seconds[name]) / min(base),
                "against_base_quartiles": statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3,
                "hits": hits.get(name),
            }
        )
    return rows


def _rivals(x: torch.Tensor, forward: Callable[[Any], None]) -> dict[str, Run]:
    """Those that are installed."""
    found: dict[str, Run] = {}
    if importlib.util.find_spec("pytorchfi"):
        for count in (1, _SHARED):
            found[f"PyTorchFI, {count} faults, declared before"] = _pytorchfi(x, count, forward)
    if importlib.util.find_spec("mrfi"):
        from mrfi import MRFI, EasyConfig

        for rate in ("1e-4", "1e-2"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = MRFI(resnet20(seed=0).eval(), EasyConfig.load_string(_MRFI.format(rate=rate)))
            found[f"MRFI, {rate} of conv outputs, 8-bit sign flips"] = partial(forward, network)
    return found


def _pytorchfi(x: torch.Tensor, count: int, forward: Callable[[Any], None]) -> Run:
    from pytorchfi.core import fault_injection

    injector = fault_injection(resnet20(seed=0).eval(), len(x), input_shape=[3, 32, 32])
    shapes = injector.output_size
    generator = torch.Generator().manual_seed(1)
    layers = torch.randint(len(shapes), (count,), generator=generator).tolist()

    def places(axis: int) -> list[int]:
        return [int(torch.randint(shapes[layer][axis], (1,), generator=generator)) for layer in layers]

    broken = injector.declare_neuron_fi(
        batch=torch.randint(len(x), (count,), generator=generator).tolist(),
        layer_num=layers,
        dim1=places(1),
        dim2=places(2),
        dim3=places(3),
        value=[1.0] * count,
    )

    def run() -> None:
        injector.reset_current_layer()  # its hooks count layers
        forward(broken)

    return run
