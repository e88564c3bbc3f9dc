"""Latency of an image on this machine: the published implementation's operations against ours, in turn.

Random weights in the released layouts: valid for time, not for quality.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch

from benchmarks.var.models import random_pipeline
from benchmarks.var.published import PublishedSampler
from sparing.var.config import LINEAR_KINDS
from sparing.var.cost import attention_cost
from sparing.var.formats import int8_precision
from sparing.var.pipeline import VARPipeline, weights_fingerprint
from sparing.var.plan import CompressionPlan, SharingPlan

SETTINGS: dict[str, Any] = {"guidance_scale": 1.5, "top_k": 900, "top_p": 0.96}
Draw = Callable[[torch.Tensor], object]


def check_same_work(name: str) -> float:
    """Share of greedy tokens on which the rival and we agree in float32; random weights make near ties, so not all."""
    pipe = random_pipeline(name)
    labels = torch.tensor([3])
    theirs, _ = PublishedSampler(pipe)(labels, guidance_scale=1.5, top_k=1, top_p=1.0, generator=torch.Generator())
    ours = torch.cat(pipe(labels, top_k=1, top_p=1.0).tokens, 1)
    return float((theirs.cpu() == ours).float().mean())


def published(pipe: VARPipeline, autocast: torch.dtype | None) -> Draw:
    """The rival, with or without autocast."""
    sampler = PublishedSampler(pipe)
    device = pipe.device.type

    def draw(labels: torch.Tensor) -> object:
        generator = torch.Generator(pipe.device).manual_seed(0)
        context = torch.autocast(device, autocast) if autocast is not None else contextlib.nullcontext()
        settings = {**SETTINGS, "top_k": min(900, pipe.transformer.config.vocab_size)}
        with context:
            return sampler(labels, generator=generator, **settings)

    return draw


def int8_plan(pipe: VARPipeline, *, shared: bool, kv_bits: Literal[8] | None = None) -> CompressionPlan:
    """Integer products everywhere; with `shared`, the output shared in the later half of the scales.

    An 8-bit cache saves memory, not time.
    """
    config = pipe.transformer.config
    precision = int8_precision(config, kinds=LINEAR_KINDS[1:]).model_copy(update={"kv_bits": kv_bits})
    from_scale = len(config.patch_nums) // 2
    return CompressionPlan(
        model=config,
        weights=weights_fingerprint(pipe.transformer),
        precision=precision,
        sharing=SharingPlan(variant="output", first_scale=(from_scale,) * config.depth) if shared else None,
    )


def compiled_column(name: str, device: str, *, half: torch.dtype) -> dict[str, tuple[str, Draw]]:
    """Ours with fewer launches: fused passes, and CUDA graphs where there are any. The first round compiles."""
    pipe = random_pipeline(name, dtype=half, device=device)
    pipe.compile_()
    return {f"ours, {str(half).removeprefix('torch.')}, compiled": ("exact", lambda labels: pipe(labels, **SETTINGS))}


def contestants(name: str, device: str, *, half: torch.dtype) -> dict[str, tuple[str, Draw]]:
    """From a column's name to what it is (exact or lossy) and how it draws."""
    whole = random_pipeline(name, device=device)
    cast = random_pipeline(name, dtype=half, device=device)
    integer = random_pipeline(name, dtype=half, device=device)
    integer.use(int8_plan(integer, shared=False))
    shared = random_pipeline(name, dtype=half, device=device)
    shared.use(int8_plan(shared, shared=True))
    word = str(half).removeprefix("torch.")
    return {
        f"published, {word} autocast": ("rival", published(whole, half)),
        "published, float32": ("rival", published(whole, None)),
        f"published, {word} weights cast once": ("rival", published(cast, half)),
        f"ours, {word}": ("exact", lambda labels: cast(labels, **SETTINGS)),
        "ours, int8 linear layers": ("lossy", lambda labels: integer(labels, **SETTINGS)),
        "ours, int8, output shared in the later half of the scales": (
            "lossy",
            lambda labels: shared(labels, **SETTINGS),
        ),
    }


def measure(
    name: str,
    *,
    batch_sizes: list[int],
    rounds: int,
    device: str = "cpu",
    only: list[str] | None = None,
    compiled: bool | None = None,
) -> Any:
    """Best, median and worst of the rounds for each column and batch size; columns take turns.

    `compiled` adds a column; by default on GPUs.
    """
    half = torch.bfloat16 if device == "cpu" else torch.float16
    columns = contestants(name, device, half=half)
    if compiled or (compiled is None and device != "cpu"):
        columns |= compiled_column(name, device, half=half)
    columns = {n: c for n, c in columns.items() if not only or any(o in n for o in only)}
    results = []
    for batch in batch_sizes:
        labels = torch.arange(batch, device=device) * 7 % 1000
        times: dict[str, list[float]] = {column: [] for column in columns}
        for turn in range(rounds + 1):
            for column, (_, draw) in columns.items():
                gc.collect()
                _wait(device)
                start = time.perf_counter()
                draw(labels)
                _wait(device)
                if turn:
                    times[column].append(time.perf_counter() - start)
        base = min(times[next(iter(columns))])
        for column, seconds in times.items():
            results.append(
                {
                    "model": name,
                    "batch_size": batch,
                    "column": column,
                    "kind": columns[column][0],
                    "best_s": round(min(seconds), 4),
                    "median_s": round(statistics.median(seconds), 4),
                    "worst_s": round(max(seconds), 4),
                    "speedup_of_best": round(base / min(seconds), 3),
                    "rounds": rounds,
                }
            )
            print(f"{name} batch {batch} {column}: {min(seconds):.3f} s, {base / min(seconds):.2f}x", flush=True)
    return results


def shared_share(name: str) -> float:
    """Attention computation that the shared column leaves out; counted."""
    pipe = random_pipeline(name)
    return attention_cost(pipe.transformer.config, int8_plan(pipe, shared=True)).removed


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()
