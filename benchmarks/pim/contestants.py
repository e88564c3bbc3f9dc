"""The networks that are compared at equal crossbars: epitomes, narrower networks, and one with blocks pruned away."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparing.pim import (
    CrossbarSize,
    NetworkDesign,
    NetworkShape,
    dense_design,
    design_tables,
    error_proxy,
    exact_best,
    layer_grid,
    network_options,
    num_crossbars,
    num_planes,
    trace_layers,
    uniform_design,
)
from sparing.pim.block_ranges import block_cuts
from sparing.pim.matching import design_error
from sparing.pim.mixed_precision import hessian_traces
from sparing.vision import ResNet, ResNetConfig, resnet20, to_float
from sparing.vision.datasets import ImageDataset

CROSSBAR = CrossbarSize(64, 64)
BITS, ACTIVATION_BITS = 3, 9
LEAST_RATIO = 30.0
# Rivals with fewer weights in themselves: widths and blocks a stage, found by :func:`largest_within`.
_DEPTHS_NARROW = ((3, 3, 3), (3, 3, 4), (3, 4, 4), (4, 4, 4))
_DEPTHS_SHALLOW = ((2, 2, 2), (1, 2, 2), (2, 2, 3))
_IMAGE = (3, 32, 32)
Masks = dict[str, Tensor]


def shape_of(model: nn.Module) -> NetworkShape:
    """The layers on CIFAR-10's images."""
    return trace_layers(model, _IMAGE)


def budget() -> int:
    """The most crossbars with which ResNet-20 takes 30 times fewer than in floats."""
    network = shape_of(resnet20())
    planes = num_planes(BITS)
    return int(num_crossbars(network, dense_design(network), CROSSBAR) / LEAST_RATIO) // planes * planes


def dense_at_bits(network: NetworkShape) -> NetworkDesign:
    """The network as it is, in few bits."""
    return dense_design(network, bits=BITS, activation_bits=ACTIVATION_BITS)


def uniform_within(network: NetworkShape, most: int, *, wrapped: bool = False) -> NetworkDesign:
    """The uniform epitome of least error proxy within a budget.

    Args:
        network: the layers.
        most: crossbars.
        wrapped: half the columns, computed once and repeated, of the epitome that is best without.
    """
    tried: list[tuple[float, int, int]] = []
    for rows in range(1, 11):
        for weights in sorted({layer.num_weights - 1 for layer in network.layers if layer.kind == "conv"}):
            design = _uniform(network, rows, weights)
            if num_crossbars(network, design, CROSSBAR) <= most:
                tried.append((design_error(network, design), rows, weights))
    _, rows, weights = min(tried)
    return _uniform(network, rows, weights, max_cols=CROSSBAR.cols // 2 if wrapped else CROSSBAR.cols, wrapped=wrapped)


def broad_epitome(network: NetworkShape) -> NetworkDesign:
    """The uniform epitome of two crossbars' rows in all layers of the later two stages: below the budget."""
    return _uniform(network, 2, 4000)


def _uniform(
    network: NetworkShape, rows: int, min_weights: int, *, max_cols: int = CROSSBAR.cols, wrapped: bool = False
) -> NetworkDesign:
    return uniform_design(
        network,
        CROSSBAR,
        bits=BITS,
        max_rows=rows * CROSSBAR.rows,
        max_cols=max_cols,
        min_weights=min_weights,
        wrapped=wrapped,
        activation_bits=ACTIVATION_BITS,
    )


def designed_within(model: nn.Module, images: ImageDataset, most: int, *, batch: int = 256) -> NetworkDesign:
    """The design of least sensitivity times error within a budget, layer by layer, by the exact search.

    Args:
        model: pretrained and dense.
        images: of which the first give the curvature of the loss.
        most: crossbars.
        batch: images for that.
    """
    network = shape_of(model)
    names = [layer.name for layer in network.layers]
    x, labels = to_float(torch.from_numpy(images.images[:batch])), torch.from_numpy(images.labels[:batch])
    traces = dict(zip(names, hessian_traces(model, x, labels, names, num_samples=4), strict=True))
    squares = {name: float(model.get_parameter(f"{name}.weight").detach().square().mean()) for name in names}
    sensitivity = {
        layer.name: max(traces[layer.name], 0.0) / layer.num_weights * squares[layer.name] for layer in network.layers
    }
    options = network_options(network, CROSSBAR, bits=(BITS,), wrapped=False)
    error = error_proxy(model, sensitivity=sensitivity)
    tables = design_tables(network, CROSSBAR, options, error=error, activation_bits=ACTIVATION_BITS)
    return exact_best(tables, objective="error", limit=("crossbars", float(most))).design


def largest_within(most: int, *, shallow: bool, seed: int) -> ResNet:
    """The dense ResNet of most weights within a budget: as deep as ResNet-20 and narrower, or shallower too."""
    best: tuple[int, ResNet] | None = None
    for depths in _DEPTHS_SHALLOW if shallow else _DEPTHS_NARROW:
        for width in range(4, 17):
            config = ResNetConfig(layers=depths, width=width, num_classes=10, stem="cifar")
            with torch.device("meta"):
                network = shape_of(ResNet(config))
            weights = sum(layer.num_weights for layer in network.layers)
            if num_crossbars(network, dense_at_bits(network), CROSSBAR) <= most and (not best or weights > best[0]):
                best = (weights, ResNet(config, seed=seed))
    assert best is not None
    return best[1]


def pruned_masks(model: nn.Module, images: ImageDataset, most: int, *, batches: int = 8) -> tuple[str, Masks]:
    """Which blocks of the crossbars' grid stay: whole blocks, at least one of each layer.

    Three rules are tried (magnitudes over the whole network, magnitudes as shares of their layer, and first-order
    Taylor importance, P. Molchanov et al., 2019); the one of least loss before any fine-tuning is taken.

    Args:
        model: pretrained and dense; unchanged.
        images: training images.
        most: crossbars.
        batches: of 128 images, to find importance and loss.

    Returns:
        The rule, and of each layer a mask in its weight's shape.
    """
    network = shape_of(model)
    data = [
        (to_float(torch.from_numpy(images.images[at : at + 128])), torch.from_numpy(images.labels[at : at + 128]))
        for at in range(0, min(len(images), 128 * batches), 128)
    ]
    gradients = _gradients(model, data)
    rules: dict[str, Callable[[str, Tensor], Tensor]] = {
        "magnitude": lambda name, w: w.square(),
        "magnitude within the layer": lambda name, w: w.square() / w.square().mean(),
        "Taylor": lambda name, w: torch.stack([(w * g).square() for g in gradients[name]]).sum(0),
    }
    found = []
    for rule, score in rules.items():
        masks = _masks(model, network, score, most // num_planes(BITS))
        found.append((_loss(model, masks, data), rule, masks))
    _, rule, masks = min(found, key=lambda one: one[0])
    return rule, masks


def _blocks(network: NetworkShape) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each layer, the row block of each row and the column block of each column."""
    design, found = dense_at_bits(network), {}
    for layer in network.layers:
        out, in_, p, q = layer.weight_shape
        cuts = block_cuts(layer_grid(layer, design.layers[layer.name], CROSSBAR), (in_ * p * q, out))
        rows, cols = (torch.arange(len(cut)).repeat_interleave(torch.tensor(cut)) for cut in cuts)
        found[layer.name] = (rows, cols)
    return found


def _masks(model: nn.Module, network: NetworkShape, score: Callable[[str, Tensor], Tensor], most_blocks: int) -> Masks:
    blocks, ranked = _blocks(network), []
    for name, (rows, cols) in blocks.items():
        scores = score(name, model.get_parameter(f"{name}.weight").detach()).flatten(1).T
        sums = torch.zeros(int(rows[-1]) + 1, int(cols[-1]) + 1)
        sums.index_put_((rows[:, None], cols[None]), scores, accumulate=True)
        order = sums.flatten().argsort(descending=True).tolist()
        # The best block of each layer stays whatever its score.
        ranked += [(at > 0, -float(sums.flatten()[block]), name, block) for at, block in enumerate(order)]
    kept = {name: torch.zeros(int(rows[-1]) + 1, int(cols[-1]) + 1) for name, (rows, cols) in blocks.items()}
    for _, _, name, block in sorted(ranked)[:most_blocks]:
        kept[name].view(-1)[block] = 1
    masks = {}
    for name, (rows, cols) in blocks.items():
        weight = model.get_parameter(f"{name}.weight")
        masks[name] = kept[name][rows][:, cols].T.reshape(weight.shape).contiguous()
    return masks


def kept_blocks(network: NetworkShape, masks: Masks) -> int:
    """Blocks with a weight that stays."""
    count = 0
    for name, (rows, cols) in _blocks(network).items():
        sums = torch.zeros(int(rows[-1]) + 1, int(cols[-1]) + 1)
        sums.index_put_((rows[:, None], cols[None]), masks[name].flatten(1).T.float(), accumulate=True)
        count += int((sums > 0).sum())
    return count


def mask_(model: nn.Module, masks: Masks) -> None:
    """Sets masked weights to 0 and keeps gradients from them, so that SGD leaves them there."""
    for name, mask in masks.items():
        weight = model.get_parameter(f"{name}.weight")
        with torch.no_grad():
            weight.mul_(mask)
        weight.register_hook(lambda gradient, mask=mask: gradient * mask)


def _gradients(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> dict[str, list[Tensor]]:
    own = copy.deepcopy(model).eval()
    names = [name for name, m in own.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    weights = [own.get_parameter(f"{name}.weight") for name in names]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for x, labels in data:
        gradients = torch.autograd.grad(nn.functional.cross_entropy(own(x), labels), weights)
        for name, gradient in zip(names, gradients, strict=True):
            found[name].append(gradient)
    return found


def _loss(model: nn.Module, masks: Masks, data: list[tuple[Tensor, Tensor]]) -> float:
    """Of the masked network with the batches' own statistics, which fine-tuning would find first."""
    own = copy.deepcopy(model).train()
    with torch.no_grad():
        for name, mask in masks.items():
            own.get_parameter(f"{name}.weight").mul_(mask)
        return sum(float(nn.functional.cross_entropy(own(x), labels)) for x, labels in data) / len(data)
