"""One training loop for both parts of a model: schedule, averaged weights, checkpoints, resume, progress.

All chance comes from (seed, step), so a run that was stopped and resumed gives the weights of one that was not.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sparing.errors import NonFiniteError
from sparing.runs.checkpoints import CheckpointFolder
from sparing.runs.optimizers import load_optimizer_, optimizer_tensors
from sparing.runs.progress import Progress

__all__ = ["LossAt", "TrainingConfig", "TrainingResult", "train_"]

LossAt = Callable[[int], tuple[Tensor, Mapping[str, Tensor]]]
"""From the number of a step to its loss (a scalar with gradient) and further figures to log (scalars)."""

_HISTORY_EVERY = 50
_EMA_WARM_UP = 10


class TrainingConfig(BaseModel):
    """How a part is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: images a step.
        learning_rate: at its highest.
        warmup_steps: steps of linear growth from 0.
        decay_share: share of the steps, at the end, over which the rate falls linearly to `final_rate` of its highest.
        final_rate: what is left of the rate at the end.
        weight_decay: of matrices; vectors, embeddings of place and scale have none.
        betas: of AdamW.
        clip_norm: highest norm of the gradients.
        ema_decay: of the averaged weights, 0 for none.
        seed: of everything random.
        precision: arithmetic of the forward pass; ``"bfloat16"`` under autocast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    decay_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    final_rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    clip_norm: Annotated[float, Field(gt=0)] = 2.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    precision: Literal["float32", "bfloat16"] = "bfloat16"

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step, 0 to `steps` − 1."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay_steps = max(1, math.ceil(self.decay_share * self.steps))
        left = min(1.0, (self.steps - step) / decay_steps)
        return self.learning_rate * warm * (self.final_rate + (1 - self.final_rate) * left)


@dataclass(frozen=True)
class TrainingResult:
    """How a training went.

    Attributes:
        steps: steps done in all, those before a resume too.
        history: every 50 steps: step, learning rate, and means of the loss and of the logged figures since the last.
        duration_s: wall time of this call.
        averaged: the averaged weights by the model's own names; the weights themselves where there is no average.
    """

    steps: int
    history: list[dict[str, float]]
    duration_s: float
    averaged: dict[str, Tensor]


def train_(
    model: nn.Module,
    loss_at: LossAt,
    *,
    config: TrainingConfig,
    kind: str,
    described: Mapping[str, Any],
    checkpoint_folder: str | os.PathLike[str] | None = None,
    checkpoint_every_s: float = 120.0,
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains a model in place.

    Args:
        model: its parameters that ask for gradients are trained.
        loss_at: gives the loss of a step; it runs inside the configured precision.
        config: how.
        kind: what is trained, kept with the checkpoints.
        described: what else the run depends on (model and data), as JSON values; a resume with another is refused.
        checkpoint_folder: where to save and whence to resume; None saves nothing.
        checkpoint_every_s: least time between checkpoints; one is written at the end and on Ctrl-C as well.
        progress: called with ``("training", done, steps)``.

    Returns:
        The history and the averaged weights.

    Raises:
        NonFiniteError: the loss or its gradients became NaN or infinite; the last checkpoint is untouched.
        ConfigError: the folder holds a run with other settings.
        FormatError: the folder's checkpoint is damaged.
    """
    run = _Run(model, config, _folder(checkpoint_folder, kind, {**config.model_dump(mode="json"), **described}))
    start = time.perf_counter()
    saved = start
    model.train()
    try:
        while run.step < config.steps:
            with _held_back_interrupts():
                run.advance(loss_at)
            if progress is not None:
                progress("training", run.step, config.steps)
            if time.perf_counter() - saved > checkpoint_every_s:
                run.save()
                saved = time.perf_counter()
    except KeyboardInterrupt:
        # Half a step cannot be gone on from bit for bit.
        if run.whole:
            run.save()
        raise
    finally:
        model.eval()
    run.save()
    return TrainingResult(run.step, run.history, time.perf_counter() - start, run.averaged())


@contextlib.contextmanager
def _held_back_interrupts() -> Iterator[None]:
    """Lets a step end before Ctrl-C does its work, so that there is something whole to save."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    received: list[tuple[Any, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        before(*received[0])


def _folder(path: str | os.PathLike[str] | None, kind: str, config: Mapping[str, Any]) -> CheckpointFolder | None:
    return None if path is None else CheckpointFolder(path, kind=kind, config=config)


class _Run:
    """The state of a training between two steps."""

    def __init__(self, model: nn.Module, config: TrainingConfig, folder: CheckpointFolder | None) -> None:
        self.model, self.config, self.folder = model, config, folder
        self.step, self.saved_step = 0, -1
        self.whole = True
        self.history: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.ema = {name: p.detach().clone() for name, p in self.trained.items()} if config.ema_decay else {}
        self.optimizer = _optimizer(self.trained, config)
        self._resume()

    def _resume(self) -> None:
        checkpoint = None if self.folder is None else self.folder.latest()
        if checkpoint is None:
            return
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema": {}, "optimizer": {}}
        for name, tensor in checkpoint.tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        for name, tensor in self.ema.items():
            tensor.copy_(parts["ema"][name])
        load_optimizer_(self.optimizer, parts["optimizer"], checkpoint.state["optimizer"])
        self.step = self.saved_step = checkpoint.step
        self.history, self.sums = checkpoint.state["history"], checkpoint.state["sums"]

    def advance(self, loss_at: LossAt) -> None:
        config, self.whole = self.config, False
        device = next(iter(self.trained.values())).device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss, figures = loss_at(self.step)
        rate = config.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained.values(), config.clip_norm)
        value, size = loss.detach().item(), norm.item()
        # Gradients too: a finite loss can have others, and their weights would go into a checkpoint.
        for what, number in (("loss", value), ("gradients", size)):
            if not math.isfinite(number):
                raise NonFiniteError(
                    f"{what}: became {number} at step {self.step}; lower learning_rate (now {config.learning_rate:g}) "
                    "or clip_norm, or look for bad images"
                )
        self.optimizer.step()
        self._average()
        self.step += 1
        self._log(value, rate, figures)
        self.whole = True

    def _log(self, value: float, rate: float, figures: Mapping[str, Tensor]) -> None:
        for name, figure in {"loss": value, **{n: f.detach().item() for n, f in figures.items()}}.items():
            self.sums[name] = self.sums.get(name, 0.0) + figure
        if self.step % _HISTORY_EVERY == 0:
            means = {name: total / _HISTORY_EVERY for name, total in self.sums.items()}
            self.history.append({"step": self.step, "learning_rate": rate, **means})
            self.sums = {}

    @torch.no_grad()
    def _average(self) -> None:
        if not self.ema:
            return
        decay = min(self.config.ema_decay, (1 + self.step) / (_EMA_WARM_UP + self.step))
        torch._foreach_lerp_(list(self.ema.values()), list(self.trained.values()), 1 - decay)

    def averaged(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in (self.ema or self.trained).items()}

    def save(self) -> None:
        if self.folder is None or self.saved_step == self.step:
            return
        tensors, optimizer_state = optimizer_tensors(self.optimizer)
        named = {f"optimizer/{name}": t for name, t in tensors.items()}
        named |= {f"model/{name}": t for name, t in self.model.state_dict().items()}
        named |= {f"ema/{name}": t for name, t in self.ema.items()}
        self.folder.save(self.step, named, {"optimizer": optimizer_state, "history": self.history, "sums": self.sums})
        self.saved_step = self.step


def _optimizer(trained: Mapping[str, nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW without decay of vectors, and of what stands for place, scale and class."""
    no_decay = ("embedding", "class_emb", "pos_", "lvl_embed", "scale_mul", "ada_gss")
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in trained.items():
        decays = parameter.ndim > 1 and not any(part in name for part in no_decay)
        groups[decays].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )
