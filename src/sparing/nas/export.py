"""Networks of cells as files that need nothing of sparing: a Python module with weights beside it, and ONNX.

Fault hooks, parametrizations and modules named ``fixed_point`` are left out; fixed-point weights are written as the
values that they round to. Features of a fixed-point network are floats in what is exported.
"""

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparing.errors import ArgumentError, MissingExtraError
from sparing.nas.genotype import NUM_INPUTS
from sparing.nas.network import CellNetwork
from sparing.runs.atomic import replace_file

__all__ = ["check_onnx", "clean_copy", "export_module", "export_onnx"]

_HEAD = '''"""A classifier of images made of searched cells: plain PyTorch, weights in {weights!r} beside this file.

`Network()(x)` maps n × 3 × h × w floats in [-1, 1] to n × {classes} logits; `load()` opens the trained network.
"""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F


class Zero(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class FactorizedReduction(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(channels, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels, channels - channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine={affine})

    def forward(self, x):
        x = self.relu(x)
        shifted = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))[:, :, 1:, 1:]
        return self.bn(torch.cat([self.even(x), self.odd(shifted)], 1))


class ReluConvNorm(nn.Sequential):
    def __init__(self, in_channels, channels, kernel, stride):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine={affine})


def separable(channels, kernel, stride=1, dilation=1):
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine={affine}),
    ]
'''

_TAIL = '''

class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, {stem}, 3, padding=1, bias=False), nn.BatchNorm2d({stem}, affine={affine})
        )
        self.cells = nn.ModuleList([
{cells}
        ])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout({dropout})
        self.classifier = nn.Linear({features}, {classes})

    def forward(self, x):
        older = newer = self.stem(x)
        for cell in self.cells:
            older, newer = newer, cell(older, newer)
        return self.classifier(self.dropout(torch.flatten(self.pool(newer), 1)))


def load(path=Path(__file__).with_name({weights!r})):
    """Opens the trained network, in evaluation mode."""
    from safetensors.torch import load_file

    network = Network()
    network.load_state_dict(load_file(path))
    return network.eval()
'''


def clean_copy(model: CellNetwork) -> CellNetwork:
    """Copies a network without hooks, parametrizations and modules named ``fixed_point``.

    Args:
        model: left as it is. Parametrized weights (fixed-point ones) become the values they have now.

    Returns:
        A network in float32 on the CPU, in evaluation mode.

    Raises:
        ArgumentError: another kind of network, or weights that do not fit its genotype.
    """
    if not isinstance(model, CellNetwork):
        raise ArgumentError(f"model: expected a CellNetwork, got {type(model).__name__}")
    config = model.config
    affine = any(m.affine for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    copied = CellNetwork(
        config.genotype,
        config.num_classes,
        channels=config.channels,
        num_cells=config.num_cells,
        dropout=config.dropout,
        affine=affine,
    )
    try:
        copied.load_state_dict({name: value.detach().float().cpu() for name, value in _state(model).items()})
    except RuntimeError as error:
        raise ArgumentError(
            f"model: its weights are not those of its genotype, as exchanged layers make it: {error}"
        ) from error
    return copied.eval()


def export_module(path: str | os.PathLike[str], model: CellNetwork) -> Path:
    """Writes a network as a Python module that needs PyTorch and safetensors only.

    Args:
        path: a .py file; its folder must exist. Both files are replaced, each as a whole.
        model: left as it is.

    Returns:
        The file of weights: `path` with the ending .safetensors.

    Raises:
        ArgumentError: another ending, kind of network, or weights that do not fit its genotype.
        MissingExtraError: safetensors is not installed.
        OSError: a file cannot be written; an older one is unchanged.
    """
    try:
        from safetensors.torch import save
    except ImportError as error:
        raise MissingExtraError("safetensors", extra="torch", purpose="the export") from error
    target = _ending(path, ".py")
    network = clean_copy(model)
    weights = target.with_suffix(".safetensors")
    with replace_file(weights) as file:
        file.write(save({name: value.contiguous() for name, value in network.state_dict().items()}))
    with replace_file(target) as file:
        file.write(_source(network, weights.name).encode())
    return weights


def export_onnx(path: str | os.PathLike[str], model: CellNetwork, *, image_size: int = 32) -> None:
    """Writes a network as one ONNX file: input ``images`` (n × 3 × h × w, any n), output ``logits``.

    Args:
        path: an .onnx file; replaced as a whole.
        model: left as it is.
        image_size: h and w, 1 or more.

    Raises:
        ArgumentError: another ending, size, kind of network, or weights that do not fit its genotype.
        MissingExtraError: onnx or onnxscript is not installed.
        OSError: the file cannot be written; an older one is unchanged.
    """
    target = _ending(path, ".onnx")
    if image_size < 1:
        raise ArgumentError(f"image_size: expected 1 or more, got {image_size}")
    check_onnx()
    network = clean_copy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside of PyTorch's exporter
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, image_size, image_size),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        if program is None:
            raise AssertionError("unreachable: the exporter gives a program where it gets no file")
    with replace_file(target) as file:
        file.write(program.model_proto.SerializeToString())


def check_onnx() -> None:
    """Looks for what :func:`export_onnx` needs.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
    """
    for package in ("onnx", "onnxscript"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingExtraError(package, extra="onnx", purpose="the export to ONNX") from error


def _ending(path: str | os.PathLike[str], ending: str) -> Path:
    if Path(path).suffix != ending:
        raise ArgumentError(f"path: expected the ending {ending}, got {Path(path).name!r}")
    return Path(path)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict by the names that it has without parametrizations and fixed-point parts."""
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if "fixed_point" not in parts and "parametrizations" not in parts:
            state[name] = value
    for name, module in model.named_modules(remove_duplicate=False):
        if parametrize.is_parametrized(module) and "parametrizations" not in name.split("."):
            for tensor in module.parametrizations:
                state[f"{name}.{tensor}"] = getattr(module, tensor)
    return state


def _source(network: CellNetwork, weights: str) -> str:
    config, genotype = network.config, network.config.genotype
    affine = any(m.affine for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    calls, classes = [], []
    for kind, name in (("normal", "NormalCell"), ("reduce", "ReductionCell")):
        if any(plan.kind == kind for plan in network.plans):
            classes.append(_cell_class(name, genotype.normal if kind == "normal" else genotype.reduce, kind))
    for plan in network.plans:
        name = "ReductionCell" if plan.kind == "reduce" else "NormalCell"
        older, newer = plan.in_channels
        calls.append(f"            {name}({older}, {newer}, {plan.channels}, older_stride={plan.in_strides[0]}),")
    kernel = 1 if genotype.space == "feature" else 3
    head = _HEAD.format(weights=weights, classes=config.num_classes, affine=affine)
    tail = _TAIL.format(
        stem=network.plans[0].in_channels[0],
        affine=affine,
        cells="\n".join(calls),
        dropout=config.dropout,
        features=network.num_features,
        classes=config.num_classes,
        weights=weights,
    )
    return head + "".join(classes).replace("KERNEL", str(kernel)) + tail


def _cell_class(name: str, nodes: tuple[tuple[tuple[int, str], ...], ...], kind: str) -> str:
    lines, sums, number = [], [], 0
    for node, edges in enumerate(nodes, NUM_INPUTS):
        terms = []
        for source, primitive in edges:
            stride = 2 if kind == "reduce" and source < NUM_INPUTS else 1
            lines.append(f"            {_primitive(primitive, stride)},  # {source} -> {node}")
            terms.append(f"self.edges[{number}](n{source})")
            number += 1
        sums.append(f"        n{node} = {' + '.join(terms)}")
    inner = ", ".join(f"n{node}" for node in range(NUM_INPUTS, NUM_INPUTS + len(nodes)))
    return f"""

class {name}(nn.Module):
    def __init__(self, older, newer, channels, older_stride):
        super().__init__()
        self.preprocess = nn.ModuleList([
            ReluConvNorm(older, channels, KERNEL, older_stride),
            ReluConvNorm(newer, channels, KERNEL, 1),
        ])
        self.edges = nn.ModuleList([
{chr(10).join(lines)}
        ])

    def forward(self, older, newer):
        n0, n1 = self.preprocess[0](older), self.preprocess[1](newer)
{chr(10).join(sums)}
        return torch.cat([{inner}], 1)
"""


def _primitive(name: str, stride: int) -> str:
    kernel = name[-1]
    return {
        "none": f"Zero({stride})",
        "max3": f"nn.MaxPool2d(3, {stride}, 1)",
        "avg3": f"nn.AvgPool2d(3, {stride}, 1, count_include_pad=False)",
        "skip": "nn.Identity()" if stride == 1 else "FactorizedReduction(channels)",
        "conv1": f"nn.Conv2d(channels, channels, 1, {stride})",
        "rcb": f"ReluConvNorm(channels, channels, {kernel}, {stride})",
        "sep": f"nn.Sequential(*separable(channels, {kernel}, {stride}), *separable(channels, {kernel}))",
        "dil": f"nn.Sequential(*separable(channels, {kernel}, {stride}, dilation=2))",
    }[name if name in ("none", "max3", "avg3", "skip", "conv1") else name[:-1]]
