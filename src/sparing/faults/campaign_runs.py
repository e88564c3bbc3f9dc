"""How a campaign runs: points measured draw by draw, in one order whatever the workers, and resumed in that order.

Order: draw 0 of every point, draw 1 of every point that has not stopped, and so on. Several draws may be computed at a
time, and ahead of what the stopping rule still wants; what it does not want is thrown away unseen, so records and
result are those of one worker.
"""

import contextlib
import hashlib
import itertools
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sparing.errors import ArgumentError, ConfigError, DtypeError, ShapeError
from sparing.faults.campaign_counts import DrawCounts, FaultPoint
from sparing.faults.campaign_records import CampaignFolder, DrawRecord
from sparing.faults.campaign_result import RESULT_FILE, CampaignConfig, CampaignResult
from sparing.faults.injection import inject
from sparing.faults.models import FaultModel
from sparing.faults.normalization import MIN_IMAGES, recalibrated_norms
from sparing.faults.portable import network_from_bytes, network_to_bytes
from sparing.faults.sites import check_model, image_batches, tell_no_more
from sparing.faults.stored import holds_faults
from sparing.runs.executors import Shared, WorkExecutor, check_executor, open_executor
from sparing.runs.modes import evaluating
from sparing.runs.progress import Progress

__all__ = ["Batches", "as_batches", "example_images", "run_points"]

Batches = Iterable[tuple[Tensor, Tensor]]
"""Images as the network takes them, first axis images, and their classes (integers), batch by batch: a list, or what
gives them, such as a DataLoader. It is read once, and what it gave is kept for all draws."""

_Batches = Sequence[tuple[Tensor, Tensor]]

_EXAMPLES = 32
_ROUNDED_OTHERWISE = 0.01
_AHEAD = 2  # draws a worker, in work and waiting


class _Work:
    """What every draw needs; in another process, a copy of it."""

    def __init__(
        self,
        model: nn.Module,
        batches: _Batches,
        points: Sequence[FaultPoint],
        config: CampaignConfig,
        clean: Tensor,
        recalibration: Sequence[Tensor] | None,
    ) -> None:
        self.model, self.batches, self.points, self.config, self.clean = model, batches, points, config, clean
        self.recalibration = recalibration

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "model": network_to_bytes(self.model)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, model=network_from_bytes(state["model"]))
        tell_no_more(self.model)


def _measure(shared: "Shared[_Work]", number: int, draw: int) -> DrawRecord:
    """One draw of one point."""
    work = shared.get()
    point = work.points[number]
    if point.fault is None:
        raise AssertionError("unreachable: nothing is drawn without faults")
    with inject(
        work.model,
        point.fault,
        seed=work.config.seed,
        draw=draw,
        transient=work.config.transient,
        include=point.include,
        exclude=point.exclude,
        example=example_images(work.model, work.batches),
    ) as injection:
        written = sum(injection.hits.values())
        with _recalibrated(work.model, work.recalibration):
            before = sum(injection.hits.values())
            predictions = _predictions(work.model, work.batches)
        # Those that images of recalibration met in between are left out.
        hits = written + sum(injection.hits.values()) - before
    labels = torch.cat([labels for _, labels in work.batches]).cpu()
    return DrawRecord(
        point=point.label,
        draw=draw,
        correct=int((predictions == labels).sum()),
        changed=int((predictions != work.clean).sum()),
        hits=int(hits),
    )


def run_points(
    model: nn.Module,
    batches: Batches,
    points: Sequence[FaultPoint],
    *,
    kind: Literal["rates", "sites", "bits"],
    fault: dict[str, Any],
    config: CampaignConfig,
    recalibration: Tensor | Iterable[Tensor] | None = None,
    folder: str | os.PathLike[str] | None,
    workers: int,
    parallel: Literal["processes", "ray"],
    progress: Progress | None,
) -> CampaignResult:
    """Measures points; what all campaigns have in common. Arguments as of :func:`~sparing.faults.sweep`.

    Args:
        model: the network.
        batches: images and classes.
        points: with labels of their own.
        kind: of the points.
        fault: the JSON that describes the faults of all points.
        config: how much is drawn.
        recalibration: images for normalizations under each draw.
        folder: where draws are recorded.
        workers: processes.
        parallel: where they are.
        progress: called with draws done.
    """
    check_model(model)
    if not isinstance(config, CampaignConfig):
        raise DtypeError(f"config: expected a CampaignConfig, got {type(config).__name__}")
    batches = as_batches(batches)
    if recalibration is not None and any(point.fault and _is_redrawn(point.fault, config) for point in points):
        raise ArgumentError(
            "recalibration: these faults are drawn anew for each image, and leave nothing to correct; "
            "CampaignConfig(transient=False) makes them a chip's"
        )
    if workers != 1 and holds_faults(model):
        raise ArgumentError("workers: expected 1 for a model that is in a context of faults; its ranges are known here")
    check_executor(workers, parallel)
    if workers > 1:
        network_to_bytes(model)  # refused before a folder is tied to it
    again = None if recalibration is None else image_batches(recalibration, "recalibration", least=MIN_IMAGES)
    _try_out(model, batches, points, config, again)
    identity = {"model": _model_identity(model), "data": _data_identity(batches)}
    if again is not None:
        identity["recalibration"] = _images_identity(again)
    # Points that are sites say so themselves.
    include, exclude = (None, None) if kind == "sites" else (points[0].include, points[0].exclude)
    campaign = {
        "kind": kind,
        "fault": fault,
        "points": [point.label for point in points],
        "rates": [point.rate for point in points],
        "sites": {} if kind == "sites" else {"include": _listed(include), "exclude": _listed(exclude)},
        "config": config.model_dump(mode="json"),
        "modules": _modules(model),
        **identity,
    }
    with contextlib.ExitStack() as stack, evaluating(model):
        files = None if folder is None else stack.enter_context(CampaignFolder(folder, campaign))
        clean = _clean_predictions(model, batches, files)
        counts = DrawCounts(points, config, num_images=len(clean), progress=progress)
        for record in files.records if files else ():
            counts.replay(record)
        if not counts.complete:
            shared = _Work(model, batches, points, config, clean, again)
            with open_executor(workers, kind=parallel, shared=shared) as executor:
                _draw_all(executor, counts, files)
        labels = torch.cat([labels for _, labels in batches]).cpu()
        accuracy = int((clean == labels).sum()) / len(labels)
        result = CampaignResult(
            kind=kind,
            fault=fault,
            config=config,
            include=include,
            exclude=exclude,
            identity=identity,
            num_images=len(labels),
            clean_accuracy=accuracy,
            points=counts.results(accuracy),
        )
        if files:
            result.save(files.path / RESULT_FILE)
    return result


def _is_redrawn(fault: FaultModel, config: CampaignConfig) -> bool:
    """Whether faults differ from one forward pass to the next."""
    features = any(part.place == "features" for part in fault.parts)
    return bool(config.transient) or (features and config.transient is None)


def _try_out(
    model: nn.Module,
    batches: _Batches,
    points: Sequence[FaultPoint],
    config: CampaignConfig,
    recalibration: Sequence[Tensor] | None,
) -> None:
    """Meets errors in the arguments before a folder is tied to them."""
    first = {images.shape[1:]: (images[:1], labels[:1]) for images, labels in reversed(batches)}
    with evaluating(model):
        with _recalibrated(model, recalibration):
            _predictions(model, list(first.values()))
        for point in points:
            if point.fault is not None:
                with (
                    inject(
                        model,
                        point.fault,
                        seed=config.seed,
                        transient=config.transient,
                        include=point.include,
                        exclude=point.exclude,
                        example=example_images(model, batches),
                    ),
                    _recalibrated(model, recalibration),
                ):
                    return


@contextlib.contextmanager
def _recalibrated(model: nn.Module, images: Sequence[Tensor] | None) -> Iterator[None]:
    if images is None:
        yield
        return
    device = _device(model)
    with recalibrated_norms(model, [batch.to(device) for batch in images]):
        yield


def _draw_all(executor: WorkExecutor, counts: DrawCounts, files: CampaignFolder | None) -> None:
    upcoming = counts.upcoming()
    ahead = 1 if executor.num_workers == 1 else _AHEAD * executor.num_workers
    pending: deque[tuple[int, Future[DrawRecord]]] = deque()
    while True:
        for number, draw in itertools.islice(upcoming, ahead - len(pending)):
            pending.append((number, executor.submit(_measure, executor.shared, number, draw)))
        if not pending:
            return
        number, future = pending.popleft()
        if counts.stopped[number]:
            future.cancel()
            continue
        record = future.result()
        if files:
            files.append(record)
        counts.add(number, record)


def _clean_predictions(model: nn.Module, batches: _Batches, files: CampaignFolder | None) -> Tensor:
    found = _predictions(model, batches)
    kept = files.clean_predictions() if files else None
    if files and kept is None:
        files.keep_clean_predictions(found.numpy())
    if kept is None:
        return found
    # What a forward pass calls besides modules is not in the fingerprint. Other processors may round a few otherwise.
    differing = float((found.numpy() != kept).mean())
    if differing > _ROUNDED_OTHERWISE:
        raise ConfigError(
            f"folder: it holds the campaign of a network that predicts other classes for {differing:.1%} of the images "
            "without faults, though it has these weights; use another folder for this one"
        )
    return torch.from_numpy(kept)


def _predictions(model: nn.Module, batches: _Batches) -> Tensor:
    """The class of each image, int64 on the CPU; −1 where a logit is not a finite number."""
    found = []
    device = _device(model)
    with torch.no_grad():
        for images, labels in batches:
            logits = model(images.to(device))
            if not isinstance(logits, Tensor):
                raise DtypeError(f"model: expected a tensor of logits, got {type(logits).__name__}")
            if logits.ndim != 2 or len(logits) != len(labels):
                raise ShapeError(f"model: expected logits of shape ({len(labels)}, classes), got {tuple(logits.shape)}")
            if int(labels.max()) >= logits.shape[1]:
                raise ArgumentError(
                    f"batches: expected classes below {logits.shape[1]}, as many as the model has logits, got "
                    f"{int(labels.max())}"
                )
            finite = logits.isfinite().all(1)
            found.append(torch.where(finite, logits.argmax(1), -1).cpu())
    return torch.cat(found)


def example_images(model: nn.Module, batches: _Batches) -> Tensor:
    """A few images on the model's device: they show where features are, and of a float model in which range."""
    return batches[0][0][:_EXAMPLES].to(_device(model))


def _device(model: nn.Module) -> torch.device:
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def as_batches(batches: Batches) -> list[tuple[Tensor, Tensor]]:
    """Reads batches, and refuses what is not images and classes.

    Raises:
        ArgumentError, DtypeError, ShapeError: as it says.
    """
    given: object = batches
    if not isinstance(given, Iterable):
        raise DtypeError(f"batches: expected batches of images and classes, got {type(given).__name__}")
    found = [_as_batch(number, batch) for number, batch in enumerate(given)]
    if not found:
        raise ArgumentError("batches: expected one or more, got none")
    return found


def _as_batch(number: int, batch: Any) -> tuple[Tensor, Tensor]:
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
        raise DtypeError(
            f"batches[{number}]: expected two tensors, got {' and '.join(type(part).__name__ for part in parts)}"
        )
    images, labels = parts
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DtypeError(f"batches[{number}]: expected classes as integers, got {labels.dtype}")
    if images.ndim < 2 or labels.shape != (len(images),) or not len(images):
        raise ShapeError(
            f"batches[{number}]: expected images and as many classes, one or more, got shapes "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if bool((labels < 0).any()):
        raise ArgumentError(f"batches[{number}]: expected classes of 0 or more, got {int(labels.min())}")
    return images, labels


def _model_identity(model: nn.Module) -> dict[str, Any]:
    """Class, layout and checksum of a model's weights and buffers."""
    weights, layout = hashlib.sha256(), hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            layout.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            weights.update(_bytes_of(tensor))
        else:  # what a module's get_extra_state gives
            weights.update(_text(tensor).encode())
    return {
        "class": type(model).__name__,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layout_sha256": layout.hexdigest(),
        "weights_sha256": weights.hexdigest(),
    }


def _modules(model: nn.Module) -> dict[str, str]:
    """What each module is: other activations than before have the same weights."""
    return {
        name or "model": f"{module._get_name()}({_text(module.extra_repr())})" for name, module in model.named_modules()
    }


def _text(value: object) -> str:
    """The same text in each process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def _data_identity(batches: _Batches) -> dict[str, Any]:
    images, labels = hashlib.sha256(), hashlib.sha256()
    for x, y in batches:
        images.update(_bytes_of(x))
        labels.update(_bytes_of(y.long()))
    # Faults of features are drawn batch by batch: other batches, other faults.
    sizes = [(str(size), len(list(group))) for size, group in itertools.groupby(len(y) for _, y in batches)]
    return {
        "num_images": sum(len(y) for _, y in batches),
        "image_shape": list(batches[0][0].shape[1:]),
        "batches": " + ".join(size if count == 1 else f"{count} × {size}" for size, count in sizes),
        "images_sha256": images.hexdigest(),
        "labels_sha256": labels.hexdigest(),
    }


def _images_identity(batches: Sequence[Tensor]) -> dict[str, Any]:
    images = hashlib.sha256()
    for x in batches:
        images.update(_bytes_of(x))
    return {"batches": [len(x) for x in batches], "images_sha256": images.hexdigest()}


def _bytes_of(tensor: Tensor) -> memoryview:
    array: npt.NDArray[np.uint8] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return array.data


def _listed(names: tuple[str, ...] | None) -> list[str] | None:
    return None if names is None else list(names)
