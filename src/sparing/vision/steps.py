"""What one step of a training computes, where it is more than the loss of a batch: under faults, with a teacher, ..."""

import zlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparing.errors import ArgumentError, ShapeError

__all__ = ["DistillationStep", "TrainingStep"]


class TrainingStep(Protocol):
    """Computes the gradients of a step; given to :func:`~sparing.vision.train_classifier_`.

    What it draws by chance must follow from the step's number alone, so that an interrupted training goes on alike.

    A step that also has a method ``after_update_(model)`` has it called behind each of the optimizer's steps, for
    example to bring weights back within bounds.
    """

    def describe(self) -> dict[str, Any]:
        """Its settings as JSON can hold them; a checkpoint goes on with equal ones only."""

    def __call__(self, loss_of: Callable[[], Tensor], model: nn.Module, step: int) -> Tensor:
        """Adds up gradients in the model's parameters, which have none yet.

        Args:
            loss_of: passes the step's images through the model and returns their mean loss; may be called more than
                once, and each result may be differentiated.
            model: what is trained, in training mode.
            step: counted from 0.

        Returns:
            The loss to report, detached.
        """


class DistillationStep:
    """One step of training with a teacher, for example a network's float self while it is trained in few bits.

    The loss is (1 − share)·loss + share·T²·KL(teacher ‖ student), both softened by the temperature T. One pass of the
    teacher more a step.

    Args:
        teacher: maps the same images to logits of the same classes. It is put into evaluation mode and on the images'
            device, and not changed otherwise.
        share: of the teacher's part, 0 to 1.
        temperature: T, above 0.

    Raises:
        ArgumentError: a share or a temperature out of range.

    Source:
        G. Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
    """

    def __init__(self, teacher: nn.Module, *, share: float = 0.7, temperature: float = 4.0) -> None:
        if not 0 <= share <= 1:
            raise ArgumentError(f"share: expected 0 to 1, got {share}")
        if not 0 < temperature < float("inf"):
            raise ArgumentError(f"temperature: expected a finite number above 0, got {temperature}")
        self.teacher, self.share, self.temperature = teacher.eval(), share, temperature

    def describe(self) -> dict[str, Any]:
        """Settings as JSON can hold them, and a checksum of the teacher."""
        checksum = 0
        for tensor in self.teacher.state_dict().values():
            plain = tensor.detach().cpu().contiguous()
            checksum = zlib.crc32(plain.flatten().view(torch.uint8).numpy(), checksum)
        return {
            "name": "distillation",
            "share": self.share,
            "temperature": self.temperature,
            "teacher": type(self.teacher).__name__,
            "teacher_crc32": checksum,
        }

    def __call__(self, loss_of: Callable[[], Tensor], model: nn.Module, step: int) -> Tensor:  # noqa: ARG002
        """Adds up gradients; see :class:`TrainingStep`.

        Raises:
            ShapeError: the teacher has other classes.
        """
        seen: list[tuple[Tensor, Tensor]] = []
        handle = model.register_forward_hook(lambda _, given, logits: seen.append((given[0], logits)))
        try:
            loss = loss_of()
        finally:
            handle.remove()
        images, logits = seen[-1]
        half = logits.dtype == torch.bfloat16
        self.teacher.to(images.device)
        self.teacher.eval()  # whatever was done to it since
        with torch.no_grad(), torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=half):
            taught = self.teacher(images)
        if taught.shape != logits.shape:
            raise ShapeError(f"teacher: expected logits of shape {tuple(logits.shape)}, got {tuple(taught.shape)}")
        soft, target = ((x.float() / self.temperature).log_softmax(1) for x in (logits, taught))
        divergence = F.kl_div(soft, target, reduction="batchmean", log_target=True) * self.temperature**2
        total = (1 - self.share) * loss + self.share * divergence
        total.backward()
        return total.detach()
