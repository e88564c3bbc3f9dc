"""What one step of a training computes, where it is more than the loss of a batch: under faults, with a teacher, ..."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["TrainingStep"]


class TrainingStep(Protocol):
    """Computes the gradients of a step; given to :func:`~sparing.vision.train_classifier_`.

    What it draws by chance must follow from the step's number alone, so that an interrupted training goes on alike.
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
