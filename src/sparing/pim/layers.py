"""What a network asks of a chip: its convolutions and linear layers with the sizes they meet, from one dry run.

The run happens without numbers where the network allows it (on PyTorch's meta device), so ImageNet's networks take
milliseconds. Which layer feeds which is followed through whatever lies between: norms, additions, pooling.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from sparing.errors import ArgumentError, ShapeError
from sparing.pim.shapes import LayerShape, NetworkShape, SkippedLayer
from sparing.pim.steps import Step, pooling_or_sum
from sparing.runs.modes import evaluating

__all__ = ["LayerShape", "NetworkShape", "SkippedLayer", "check_plain", "padding_of", "trace_layers"]

_Source = frozenset[str]


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.PReLU)


def trace_layers(model: nn.Module, input_shape: tuple[int, ...] = (3, 224, 224)) -> NetworkShape:
    """Finds the convolutions and linear layers of a network and the sizes they meet.

    Args:
        model: any module that maps (1, *input_shape) floats; it is a copy that runs, so that its mode, its statistics
            and what it keeps from call to call stay as they are (a model that cannot be copied runs itself).
        input_shape: of one image.

    Returns:
        The layers.

    Raises:
        ArgumentError: no convolution or linear layer is called, or one is called on maps of different sizes.
        ShapeError: the network does not take such an input; the message holds PyTorch's own.
    """
    if not input_shape or any(n < 1 for n in input_shape):
        raise ArgumentError(f"input_shape: expected sizes of at least 1, got {tuple(input_shape)}")
    recorder = _dry_run(model, tuple(input_shape))
    if not recorder.layers:
        raise ArgumentError("model: expected a network that calls a Conv2d or Linear layer, found none")
    if recorder.uneven:
        names = ", ".join(sorted(recorder.uneven)[:5])
        raise ArgumentError(f"model: expected each layer on maps of one size, got several sizes in {names}")
    layers, skipped = tuple(recorder.layers.values()), tuple(_skipped(model, recorder))
    return NetworkShape(tuple(input_shape), layers, skipped, recorder.found_steps())


def _dry_run(model: nn.Module, input_shape: tuple[int, ...]) -> "_Recorder":
    tensors = [*model.parameters(), *model.buffers()]
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    x = torch.empty(1, *input_shape, dtype=dtype, device="meta")
    try:
        return _run(_copied(model, meta=True), x)
    except Exception:  # noqa: BLE001,S110 - what it does without numbers is anyone's guess; with numbers is what counts
        pass
    x = torch.zeros_like(x, device=next((t.device for t in tensors), torch.device("cpu")))
    try:
        own = _copied(model, meta=False)
    except Exception:  # noqa: BLE001 - it holds what cannot be copied, a lock or an open file
        own = model
    try:
        return _run(own, x)
    except Exception as error:  # whatever a foreign network says of an input that it does not take
        raise ShapeError(f"input_shape: the network does not take an input of {tuple(x.shape)}: {error}") from error


def _copied(model: nn.Module, *, meta: bool) -> nn.Module:
    """The model with its own parameters and a copy of the rest; or with neither parameters nor buffers in memory."""
    shared: dict[int, Any] = {id(t): t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor)}
    shared |= {id(p): p for p in model.parameters()}
    if meta:
        shared |= {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
        shared |= {id(b): b.to("meta") for b in model.buffers()}
    return copy.deepcopy(model, shared)


def _run(model: nn.Module, x: Tensor) -> "_Recorder":
    recorder = _Recorder()
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [recorder.hook(name, module) for name, module in layers]
    try:
        with evaluating(model), torch.no_grad(), recorder:
            recorder.sources[x] = recorder.feeds[x] = frozenset([""])
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return recorder


class _Recorder(TorchDispatchMode):
    """Notes each call of a layer, and of each tensor which layers, and which steps, it comes from."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: dict[str, LayerShape] = {}
        self.uneven: set[str] = set()
        self.sources: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.feeds: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.steps: dict[str, Step | None] = {}  # None: a layer, whose shape is in `layers`
        self.fed: dict[str, _Source] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        source, feed = self._source_of((args, kwargs)), self._feed_of((args, kwargs))
        step = pooling_or_sum(func, args, out, [self._feed_of(arg) for arg in args])
        if step is not None:
            name = f"{step.kind}:{1 + sum(other.startswith(f'{step.kind}:') for other in self.steps)}"
            self.steps[name], feed = replace(step, name=name), frozenset([name])
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.sources[tensor], self.feeds[tensor] = source, feed
                if tensor._base is not None:  # a part that was written changes the whole
                    self.sources[tensor._base] = source | self._source_of(tensor._base)
                    self.feeds[tensor._base] = feed | self._feed_of(tensor._base)
        return out

    def _source_of(self, values: Any) -> _Source:
        return _united(self.sources, values)

    def _feed_of(self, values: Any) -> _Source:
        return _united(self.feeds, values)

    def hook(self, name: str, module: nn.Conv2d | nn.Linear) -> RemovableHandle:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
            x = args[0] if args else kwargs["input"]
            self._note(_shape_of(name, module, x, out), self._source_of(x))
            self.steps.setdefault(name, None)
            self.fed[name] = self.fed.get(name, frozenset()) | self._feed_of(x)
            self.sources[out] = self.feeds[out] = frozenset([name])

        return module.register_forward_hook(note, with_kwargs=True)

    def _note(self, layer: LayerShape, inputs: _Source) -> None:
        old = self.layers.get(layer.name)
        if old is None:
            self.layers[layer.name] = replace(layer, inputs=tuple(sorted(inputs)))
            return
        if (old.in_size, old.out_size) != (layer.in_size, layer.out_size):
            self.uneven.add(layer.name)
        calls, merged = old.num_calls + layer.num_calls, tuple(sorted({*old.inputs, *inputs}))
        self.layers[layer.name] = replace(old, num_calls=calls, inputs=merged)

    def found_steps(self) -> tuple[Step, ...]:
        """The steps in the order of their first call."""
        return tuple(
            step or self.layers[name].as_step(tuple(sorted(self.fed[name]))) for name, step in self.steps.items()
        )


def _united(known: WeakIdKeyDictionary, values: Any) -> _Source:
    found = (known.get(t, frozenset()) for t in tree_iter(values) if isinstance(t, Tensor))
    return frozenset().union(*found)


def _shape_of(name: str, module: nn.Conv2d | nn.Linear, x: Tensor, out: Tensor) -> LayerShape:
    """What a layer is, and what one call says of its sizes."""
    if isinstance(module, nn.Linear):
        size, one = (1, max(1, x.numel() // module.in_features)), (1, 1)
        return LayerShape(name, "linear", module.in_features, module.out_features, one, one, (0, 0), 1, size, size)
    return LayerShape(
        name=name,
        kind="conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=_pair(module.kernel_size),
        stride=_pair(module.stride),
        padding=padding_of(module),
        groups=module.groups,
        in_size=_pair(x.shape[-2:]),
        out_size=_pair(out.shape[-2:]),
        num_calls=x.shape[0] if x.ndim == 4 else 1,
        dilation=_pair(module.dilation),
    )


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def padding_of(module: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns before the first of a convolution's map, in numbers where the module has a word."""
    if module.padding == "valid":
        return 0, 0
    if module.padding != "same":
        return _pair(module.padding)
    (dh, dw), (kh, kw) = _pair(module.dilation), _pair(module.kernel_size)
    return dh * (kh - 1) // 2, dw * (kw - 1) // 2


def check_plain(module: nn.Conv2d | nn.Linear, name: str) -> None:
    """Refuses a layer that crossbars would not compute: with a forward pass of its own, or padding other than zeros.

    Raises:
        ArgumentError: it is one; says why.
    """
    base = nn.Linear if isinstance(module, nn.Linear) else nn.Conv2d
    if any(getattr(type(module), n, None) is not getattr(base, n, None) for n in ("forward", "_conv_forward")):
        raise ArgumentError(
            f"model: {name}: expected a {base.__name__} that computes as PyTorch's, got a {type(module).__name__} with "
            "a forward pass of its own; leave it out of the design"
        )
    if getattr(module, "padding_mode", "zeros") != "zeros":
        raise ArgumentError(f"model: {name}: expected padding by zeros, got {module.padding_mode!r}")


def _skipped(model: nn.Module, recorder: _Recorder) -> Iterator[SkippedLayer]:
    for name, module in model.named_modules():
        if name in recorder.layers or isinstance(module, _NORMS) or "parametrizations" in name.split("."):
            continue
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield SkippedLayer(name, "its forward is never called")
        elif next(module.parameters(recurse=False), None) is not None:
            yield SkippedLayer(name, f"a {type(module).__name__}: only Conv2d and Linear layers are mapped")
