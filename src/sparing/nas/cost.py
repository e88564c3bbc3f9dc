"""Parameters and multiply-accumulates of networks.

The convention, by which the published W-FTT-Net has 2.713 M parameters and 459.7 M MACs at C = 20 (10.79 M and
1,827.9 M at C = 40): cells are numbered from 0; separable convolutions are applied twice; a stride-2 skip is a
factorized reduction; a cell's older input is preprocessed with stride 2 where it is larger than the newer one; pools
have no batch norm; factors and offsets of batch norms are parameters; ``conv1`` has a bias. MACs are those of
convolutions and linear layers for one image: outputs times weights of one output; nothing else counts.
"""

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, ShapeError
from sparing.nas.genotype import Genotype
from sparing.nas.network import CellNetwork

__all__ = ["NetworkCost", "network_cost"]

_Layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


@dataclass(frozen=True)
class NetworkCost:
    """What a network takes.

    Attributes:
        num_parameters: trained numbers, each once.
        num_macs: multiply-accumulates of convolutions and linear layers for one image.
    """

    num_parameters: int
    num_macs: int


def network_cost(
    model: nn.Module | Genotype,
    *,
    image_size: int = 32,
    in_channels: int = 3,
    channels: int = 20,
    num_cells: int = 8,
    num_classes: int = 10,
) -> NetworkCost:
    """Counts parameters and multiply-accumulates.

    Args:
        model: any module of images, or a genotype. A copy runs without numbers, on PyTorch's meta device, or, where the
            network does not allow it, on zeros; the model itself stays as it is.
        image_size: height and width, 1 or more.
        in_channels: of the images.
        channels: C, of a genotype's network; as the next two of no meaning for a module.
        num_cells: of a genotype's network.
        num_classes: of a genotype's network.

    Raises:
        ArgumentError: a size below 1, or no convolution or linear layer is called.
        ConfigError: such a network of cells cannot be built.
        ShapeError: the network does not take such images.

    Example:
        >>> network_cost(load_genotype("w-ftt-net"))
        NetworkCost(num_parameters=2712590, num_macs=459687040)
    """
    if image_size < 1:
        raise ArgumentError(f"image_size: expected 1 or more, got {image_size}")
    if isinstance(model, Genotype):
        if in_channels != 3:
            raise ArgumentError(f"in_channels: expected 3 for a genotype, got {in_channels}")
        return _genotype_cost(model, image_size, channels, num_cells, num_classes)
    return _module_cost(model, (1, in_channels, image_size, image_size))


@lru_cache(maxsize=4096)
def _genotype_cost(genotype: Genotype, image_size: int, channels: int, num_cells: int, classes: int) -> NetworkCost:
    with torch.device("meta"):
        model = CellNetwork(genotype, classes, channels=channels, num_cells=num_cells)
    return _module_cost(model, (1, 3, image_size, image_size))


def _module_cost(model: nn.Module, shape: tuple[int, ...]) -> NetworkCost:
    tensors = [*model.parameters(), *model.buffers()]
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    try:
        macs = _macs(_copied(model, "meta"), torch.empty(shape, dtype=dtype, device="meta"))
    except Exception:  # noqa: BLE001 - what it does without numbers is anyone's guess; with numbers is what counts
        try:
            device = next((t.device for t in tensors), torch.device("cpu"))
            macs = _macs(_copied(model, None), torch.zeros(shape, dtype=dtype, device=device))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ShapeError(f"image_size: the network does not take images of {shape}: {error}") from error
    if not macs:
        raise ArgumentError("model: expected a network that calls a convolution or linear layer, found none")
    return NetworkCost(sum(parameter.numel() for parameter in model.parameters()), macs)


def _copied(model: nn.Module, device: str | None) -> nn.Module:
    """The model with its own parameters and a copy of the rest; or with neither parameters nor buffers in memory."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    if device is not None:
        shared = {id(p): nn.Parameter(p.detach().to(device), requires_grad=False) for p in model.parameters()}
        shared |= {id(b): b.to(device) for b in model.buffers()}
    return copy.deepcopy(model, shared)


def _macs(model: nn.Module, x: Tensor) -> int:
    total = 0

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, nn.modules.conv._ConvTransposeNd):
            taken = args[0] if args else kwargs["input"]
            total += taken.numel() * module.out_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, nn.modules.conv._ConvNd):
            total += output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)

    for module in model.modules():
        if isinstance(module, _Layer):
            module.register_forward_hook(count, with_kwargs=True)
    with torch.no_grad():
        model.eval()(x)
    return total
