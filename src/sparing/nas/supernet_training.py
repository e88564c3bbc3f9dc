"""Training of a supernet's shared weights: each step one architecture, with faults and without; to be gone on with."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparing.errors import FormatError, NonFiniteError
from sparing.faults.training import FaultTolerantStep
from sparing.nas.genotype import Genotype
from sparing.nas.search_config import SearchConfig
from sparing.nas.supernet import Supernet
from sparing.runs import Checkpoint, load_optimizer_, optimizer_tensors
from sparing.runs.precision import resolve_precision
from sparing.vision import EpochSampler, ImageDataset, random_crop, random_flip, stream_generator, to_float

__all__ = ["SupernetTraining"]

# What the numbered streams of chance are for; 0 is the order of the images, in sparing.vision.
_AUGMENTATION, _MODEL, _FAULTS = 1, 2, 3


class SupernetTraining:
    """The supernet, its optimizer, and where they stand.

    Only the modules of a step's architecture compute, get gradients and are changed. What is drawn by chance follows
    from the seed and the step alone, so that a checkpoint needs no state of generators.

    Args:
        supernet: trained in place, on the device where it is.
        images: for weights, of the size that the settings say.
        config: of the search.

    Attributes:
        step: steps done.
        total: steps of the whole training.
    """

    def __init__(self, supernet: Supernet, images: ImageDataset, config: SearchConfig) -> None:
        self.supernet, self._images, self._config = supernet, images, config
        training = config.supernet
        self.sampler = EpochSampler(len(images), min(training.batch_size, len(images)), seed=config.seed)
        self.step, self.total = 0, training.epochs * self.sampler.steps_per_epoch
        self._device = next(supernet.parameters()).device
        # Gradients of depthwise convolutions take several times longer in bfloat16 on a CPU.
        wide = config.precision == "auto" and self._device.type == "cpu"
        self.precision = "float32" if wide else resolve_precision(config.precision, self._device)
        supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            supernet.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
        seed = stream_generator(config.seed, _FAULTS).initial_seed()
        self._rule = FaultTolerantStep(config.fault, share=training.loss_share, seed=seed)

    @property
    def is_done(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.total

    @property
    def ends_epoch(self) -> bool:
        """Whether the last step was the last one of an epoch."""
        return self.step > 0 and self.step % self.sampler.steps_per_epoch == 0

    def train_step(self, genotype: Genotype) -> float:
        """Trains one architecture's modules on one batch.

        Returns:
            The loss.

        Raises:
            NonFiniteError: it is NaN or infinite; nothing was changed.
        """
        path = self.supernet.path(genotype).train()
        parameters = list(path.parameters())
        loss = self._gradients(path)
        value = float(loss)
        if not math.isfinite(value):
            raise NonFiniteError(
                f"the loss is {value} at step {self.step} (seed {self._config.seed}): lower supernet.learning_rate, "
                f"{self._config.supernet.learning_rate} now; checkpoints from before are unchanged"
            )
        nn.utils.clip_grad_norm_(parameters, self._config.supernet.clip)
        rate = self._config.supernet.learning_rate * (1 + math.cos(math.pi * self.step / self.total)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for parameter in parameters:
            parameter.grad = None
        self.step += 1
        return value

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by name."""
        held = {f"model.{name}": tensor for name, tensor in self.supernet.state_dict().items()}
        return held | {f"optimizer.{name}": tensor for name, tensor in optimizer_tensors(self.optimizer)[0].items()}

    def state(self) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        return optimizer_tensors(self.optimizer)[1]

    def load_(self, found: Checkpoint, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint.

        Raises:
            FormatError: it does not fit.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in found.tensors.items() if n.startswith(prefix)}

        try:
            load_optimizer_(self.optimizer, part("optimizer."), state)
            self.supernet.load_state_dict(part("model."))
        except (KeyError, TypeError, RuntimeError) as error:
            raise FormatError(f"checkpoint: does not fit this search: {error}") from error
        self.step = found.step

    def _gradients(self, path: nn.Module) -> Tensor:
        config = self._config
        # Dropout draws from the global generator.
        torch.manual_seed(stream_generator(config.seed, _MODEL, self.step).initial_seed())
        chosen = self.sampler.indices(self.step).numpy()
        images = torch.from_numpy(self._images.images[chosen])
        generator = stream_generator(config.seed, _AUGMENTATION, self.step)
        if config.supernet.crop_padding:
            images = random_crop(images, generator, padding=config.supernet.crop_padding)
        if config.supernet.flip:
            images = random_flip(images, generator)
        x = to_float(images.to(self._device)).contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(self._images.labels[chosen]).to(self._device)

        def loss_of() -> Tensor:
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
                logits = path(x)
            return nn.functional.cross_entropy(logits.float(), labels)

        return self._rule(loss_of, path, self.step)
