"""Images a second of the bit-true executor, and whether it computes what whole integer products do."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from sparing.pim import (
    AdcModel,
    CrossbarSize,
    NetworkDesign,
    NetworkShape,
    convert_,
    dense_design,
    execute,
    executing,
    map_network,
    quantize_,
    trace_layers,
    uniform_design,
)
from sparing.vision import resnet8, resnet20

BITS, ACTIVATION_BITS, ADC_BITS = 3, 9, 6
SIZES = (64, 256)


def measure(*, images: int, rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """Dense and epitome networks on both sizes of crossbars."""
    return [
        _measure(CrossbarSize(size, size), epitome, images, rounds, tiny)
        for size in SIZES
        for epitome in (False, True)
        if size == 64 or not epitome
    ]


def _design(network: NetworkShape, crossbar: CrossbarSize, epitome: bool) -> NetworkDesign:
    if not epitome:
        return dense_design(network, bits=BITS, activation_bits=ACTIVATION_BITS)
    return uniform_design(
        network, crossbar, bits=BITS, max_rows=2 * crossbar.rows, max_cols=64, min_weights=4000
    ).model_copy(update={"activation_bits": ACTIVATION_BITS})


def _measure(crossbar: CrossbarSize, epitome: bool, images: int, rounds: int, tiny: bool) -> dict[str, Any]:
    model = (resnet8 if tiny else resnet20)(seed=0).eval()
    network = trace_layers(model, (3, 32, 32))
    design = _design(network, crossbar, epitome)
    x = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    convert_(model, design)
    quantize_(model, design, crossbar=crossbar, calibration=x)
    mapping = map_network(model, network, design, crossbar)
    few = x[: min(images, 8)]
    ideal = execute(model, mapping, few, adc=AdcModel(bits=None))
    whole = execute(model, mapping, few, adc=AdcModel(bits=None), fast=True)
    with torch.no_grad():
        simulated = model(few)
    taken: list[float] = []
    with executing(model, mapping, adc=AdcModel(bits=ADC_BITS)):
        model(x)
        for _ in range(rounds):
            start = time.perf_counter()
            model(x)
            taken.append(time.perf_counter() - start)
    return {
        "network": "ResNet-8" if tiny else "ResNet-20",
        "crossbar": str(crossbar),
        "form": "epitome" if epitome else "dense",
        "weight_bits": BITS,
        "activation_bits": ACTIVATION_BITS,
        "adc_bits": ADC_BITS,
        "crossbars": mapping.num_crossbars,
        "images": images,
        "rounds": rounds,
        "best_images_per_s": images / min(taken),
        "median_images_per_s": images / statistics.median(taken),
        "all_s": taken,
        "outputs_compared": ideal.numel(),
        "outputs_that_differ_from_integer_products": int((ideal != whole).sum()),
        "largest_difference_from_fake_quantized": float((ideal - simulated).abs().max()),
        "largest_output": float(simulated.abs().max()),
    }
