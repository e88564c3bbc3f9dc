"""Layers of any shape with random codes, a small network, and the datapath in plain loops over single cells."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from sparing.pim.convert import convert_
from sparing.pim.crossbar import CrossbarSize
from sparing.pim.design import LayerDesign, NetworkDesign, layer_grid
from sparing.pim.epitome import EpitomeShape, epitome_index
from sparing.pim.layers import LayerShape, trace_layers
from sparing.pim.mapping import map_layer, map_network
from sparing.pim.quantization import quantize_


def small(low, high):
    return st.integers(low, high)


@st.composite
def layers(draw, *, grouped=True, most=7, side=6):
    """A convolution, plain or grouped, or a linear layer; and a design that fits it."""
    groups = draw(small(1, 3)) if grouped else 1
    in_channels, out_channels = groups * draw(small(1, most)), groups * draw(small(1, most))
    if groups == 1 and draw(st.integers(0, 5)) == 0:
        one = (1, 1)
        layer = LayerShape("layer", "linear", in_channels, out_channels, one, one, (0, 0), 1, one, one)
    else:
        kernel, stride, padding, dilation = (
            (draw(small(low, high)), draw(small(low, high))) for low, high in ((1, 3), (1, 2), (0, 2), (1, 2))
        )
        least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
        in_size = tuple(n + draw(small(0, side)) for n in least)
        out_size = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(in_size, kernel, stride, padding, dilation, strict=True)
        )
        layer = LayerShape(
            "layer", "conv", in_channels, out_channels, kernel, stride, padding, groups, in_size, out_size,
            dilation=dilation,
        )  # fmt: skip
    epitome = None
    if groups == 1 and draw(st.booleans()):
        epitome = EpitomeShape(
            out_channels=draw(small(1, out_channels)),
            in_channels=draw(small(1, in_channels)),
            kernel=tuple(k + draw(small(0, 2)) for k in layer.kernel),
            wrapped=draw(st.booleans()),
        )
    return layer, LayerDesign(bits=draw(small(2, 5)), epitome=epitome)


crossbars = st.builds(CrossbarSize, rows=small(1, 40), cols=small(1, 12))


def mapped(layer, design, crossbar, *, activation_bits, seed, unit=False):
    """Random codes and steps (powers of two, so that no sum of products rounds), and the mapping."""
    rng, most = np.random.default_rng(seed), 2 ** (design.bits - 1) - 1
    grid = layer_grid(layer, design, crossbar)
    size = layer.weight_shape if design.epitome is None else design.epitome.size_of(layer.weight_shape)
    codes = torch.from_numpy(rng.integers(-most, most + 1, size))
    shape = (len(grid.row_cuts), len(grid.col_cuts) * grid.copies)
    steps = torch.from_numpy(np.ones(shape) if unit else 2.0 ** rng.integers(-3, 3, shape)).float()
    found = map_layer(codes, steps, layer, design, crossbar, activation_bits, input_step=1.0 if unit else 0.5)
    return codes, steps, found


def input_codes(layer, activation_bits, *, count, seed):
    low, high = -(2 ** (activation_bits - 1)), 2 ** (activation_bits - 1)
    rng = np.random.default_rng(seed + 1)
    return torch.from_numpy(rng.integers(low, high, (count, layer.in_channels, *layer.in_size)))


def weight_of(layer, design, stored):
    """The layer's weight in float64, from what is stored."""
    if design.epitome is None:
        return stored.double()
    return stored.double().flatten()[epitome_index(layer.weight_shape, design.epitome)]


def convolved(layer, weight, codes):
    """PyTorch's convolution in float64: exact for integers."""
    where = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    return functional.conv2d(codes.double(), weight, **where)


def cell_sums(layer_mapping, x, adc, cells=None):
    """One image through the tables in plain loops; (out channels, height, width) float64."""
    layer, tables = layer_mapping.layer, layer_mapping.tables
    _, channels, p, q = layer_mapping.stored_size
    kh, kw = layer.kernel
    blocks = layer_mapping.blocks
    if cells is None:
        cells = [layer_mapping.block_cells(block) for block in blocks]
    bits, lsb = layer_mapping.activation_bits, adc.lsb
    width = max(int(row[1] + row[2]) for row in tables.ofat)
    out = np.zeros((width, *layer.out_size))
    for y, z in np.ndindex(*layer.out_size):
        for (in_start, num_in), (from_in, from_row, from_col), (from_out, out_start, num_out) in zip(
            tables.ifat.tolist(), tables.ifrt.tolist(), tables.ofat.tolist(), strict=True
        ):
            lines = {}  # word line -> the code that drives it
            for i, a, b in np.ndindex(num_in, kh, kw):
                row = y * layer.stride[0] + a * layer.dilation[0] - layer.padding[0]
                col = z * layer.stride[1] + b * layer.dilation[1] - layer.padding[1]
                inside = 0 <= row < layer.in_size[0] and 0 <= col < layer.in_size[1]
                line = (((from_in + i) % channels) * p + from_row + a) * q + from_col + b
                assert line not in lines
                lines[line] = int(x[in_start + i, row, col]) % 2**bits if inside else 0
            for block, stored in zip(blocks, cells, strict=True):
                mine = sorted(line for line in lines if 0 <= line - block.row_start < block.num_rows)
                reads = [c for c in range(from_out, from_out + num_out) if 0 <= c - block.col_start < block.num_cols]
                for c in reads if mine else []:
                    total = 0
                    for start in range(0, len(mine), adc.num_dacs):
                        group = mine[start : start + adc.num_dacs]
                        for plane, sign, cycle in np.ndindex(len(stored), 2, bits):
                            driven = [line for line in group if lines[line] >> cycle & 1]
                            found = sum(
                                float(stored[plane, sign, line - block.row_start, c - block.col_start])
                                for line in driven
                            )
                            if adc.bits is not None:
                                code = np.rint(np.float32(found) * np.float32(1 / lsb))
                                found = float(min(code, np.float32(2**adc.bits - 1)))
                            place = 2**plane * 2**cycle * (-1 if cycle == bits - 1 else 1)
                            total += (-1 if sign else 1) * place * found
                    out[out_start + c - from_out, y, z] += total * (block.step * layer_mapping.input_step * lsb)
    return np.concatenate([out] * tables.repeats)[: layer.out_channels]


class Net(nn.Module):
    """Grouped, strided and dilated convolutions, padding by "same" of an even kernel, and a linear layer on vectors."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.even = nn.Conv2d(8, 12, (2, 4), padding="same")
        self.down = nn.Conv2d(12, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.even(x))
        x = torch.relu(self.down(x))
        return self.fc(x.flatten(2).transpose(1, 2)).mean(1)


def quantized_network():
    """It in 3 bits, with two epitomes: the model, its mapping, and images."""
    torch.manual_seed(1)
    model = Net().eval()
    model.norm.running_mean.uniform_(-0.2, 0.2)
    shapes = trace_layers(model, (3, 9, 9))
    epitomes = {
        "even": EpitomeShape(out_channels=6, in_channels=5, wrapped=True),
        "down": EpitomeShape(out_channels=5, in_channels=7, kernel=(4, 3)),
    }
    design = NetworkDesign(
        layers={layer.name: LayerDesign(bits=3, epitome=epitomes.get(layer.name)) for layer in shapes.layers},
        activation_bits=6,
    )
    convert_(model, design)
    images = torch.randn(5, 3, 9, 9)
    quantize_(model, design, crossbar=CrossbarSize(64, 64), calibration=images)
    return model, map_network(model, shapes, design, CrossbarSize(64, 64)), images
