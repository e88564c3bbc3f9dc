"""VARPipeline: a tokenizer and a transformer that draw images of classes, from files and to files."""

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from sparing.errors import ArgumentError, ConfigError, DtypeError
from sparing.quant.packing import Int8Layer
from sparing.runs.atomic import replace_file
from sparing.runs.devices import usable_device
from sparing.var.checkpoints import read_state, tokenizer_from, transformer_from
from sparing.var.compact import is_packed_exactly
from sparing.var.decoder import ImageDecoder
from sparing.var.engine import Engine
from sparing.var.memory import PeakMemory, return_freed_memory
from sparing.var.pipeline_files import PipelineParts, read_parts, upload_parts, write_parts
from sparing.var.plan import CompressionPlan
from sparing.var.sampling import SamplingSettings, whole_number
from sparing.var.shipped import SHIPPED, shipped_folder
from sparing.var.transformer import VARTransformer, is_integer
from sparing.var.vqvae import VQVAE

__all__ = ["VAROutput", "VARPipeline", "weights_fingerprint"]

_CARD = "README.md"
_HUB_PREFIX = "hf://"
_SAMPLED = 4096
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class VAROutput:
    """What was drawn.

    Attributes:
        images: (B, 3, side, side) uint8 tensor on the CPU.
        tokens: for each scale (B, side²) int64, on the CPU.
        latency_s: wall time from labels to images.
        peak_bytes: most memory in use meanwhile: of the CUDA device, or of the process; None where neither is known.
    """

    images: Tensor
    tokens: list[Tensor]
    latency_s: float
    peak_bytes: int | None


def _checked_seed(seed: int | None) -> int | None:
    number = None if seed is None else whole_number(seed, "seed")
    if number is not None and not -(2**63) <= number < 2**64:
        raise ArgumentError(f"seed: expected -2**63 to 2**64 - 1, got {number}")
    return number


def weights_fingerprint(transformer: VARTransformer) -> str:
    """Returns 16 hexadecimal digits that tell models apart: of names, shapes, and numbers from each tensor."""
    digest = hashlib.sha256()
    for name, parameter in sorted(transformer.named_parameters()):
        flat = parameter.detach().flatten()
        step = max(1, len(flat) // _SAMPLED)
        values = flat[::step].float().cpu().to(torch.bfloat16).view(torch.int16).numpy()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


class VARPipeline(ModelHubMixin):
    """Draws images of classes, with the weights that its parts have at the time of the call.

    Parts may be loaded, trained, edited in place or put in each other's place between calls. What PyTorch does not
    count, an edit through ``.data``, is seen after ``pipe.use(pipe.plan)``.

    Args:
        tokenizer: turns tokens into images.
        transformer: draws tokens; the same `patch_nums` and codes.
        class_names: of the classes, for people; None where there are none.

    Raises:
        ConfigError: the two parts do not fit together.
        DtypeError: weights of a part in several dtypes, or in one that cannot be drawn with.

    Not safe for calls from several threads at once.
    """

    def __init__(
        self, tokenizer: VQVAE, transformer: VARTransformer, *, class_names: Sequence[str] | None = None
    ) -> None:
        _check_parts(tokenizer, transformer)
        num_classes = transformer.config.num_classes
        if class_names is not None and len(class_names) != num_classes:
            raise ConfigError(f"class_names: expected {num_classes} names, got {len(class_names)}")
        self.tokenizer = tokenizer.eval()
        self.tokenizer.quantize.float()
        self.transformer = transformer.eval()
        self.class_names = None if class_names is None else tuple(class_names)
        self.plan: CompressionPlan | None = None
        self._engine: Engine | None = None
        self._decoder: ImageDecoder | None = None
        self._seen: dict[str, tuple[torch.nn.Module, list[tuple[int, int]]]] = {}
        self._freed = False
        self._compiled: tuple[bool, bool | None] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.transformer.head.weight.device

    @property
    def engine(self) -> Engine:
        """The transformer made ready to generate, with the plan applied; made when needed, of the weights of now."""
        if self._has_changed("transformer"):
            self._engine = None
        if self._engine is None:
            engine = Engine(self.transformer, plan=self.plan)
            if self._compiled is not None:
                engine.compile_(fuse=self._compiled[0], graphs=self._compiled[1])
            self._engine = engine
        return self._engine

    @property
    def decoder(self) -> ImageDecoder:
        """The tokenizer's decoder made ready to draw, with the plan applied; as :attr:`engine`."""
        if self._has_changed("tokenizer"):
            self._decoder = None
        if self._decoder is None:
            self._decoder = ImageDecoder(self.tokenizer, plan=self.plan)
        return self._decoder

    def _has_changed(self, name: str) -> bool:
        """Whether a part is another one, or its weights were loaded, trained or moved, since this was asked last."""
        if self._freed:  # what was made of them is all there is
            return False
        part: torch.nn.Module = getattr(self, name)
        tensors = (*part.parameters(), *part.buffers())
        now = [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]
        seen, before = self._seen.get(name, (None, []))
        if seen is part and now == before:
            return False
        _check_parts(self.tokenizer, self.transformer)
        self._seen[name] = part, now
        return True

    def compile_(self, *, fuse: bool = True, graphs: bool | None = None) -> None:
        """Draws with fewer launches; stays in force when a plan is applied or removed or the pipeline is moved.

        Meant for GPUs, where most scales are so small that launches take longer than the work.

        * ``graphs`` records all layers of a scale into one CUDA graph when a batch size first reaches it, and replays
          it after that: the same kernels in the same order, so the same bits. It keeps keys, values and activations of
          the last two batch sizes. Scales whose windows are computed in tiles run as they are.
        * ``fuse`` has Inductor make one kernel of each pass between the products: modulated norm, gate and norm, unit
          queries and keys. Products, attention and integer layers stay as they are, so every plan works. Sums are
          rounded elsewhere: logits differ by about 1e-5 of the largest in float32, 1e-2 in bfloat16.

        Off by default. On CPUs it does not pay: four layers of d16's width in bfloat16, one thread, took 2 % longer
        at batch 1 and as long at batch 8, after 10 to 30 s of compiling: the time is in the products. Neither part
        has been run on a GPU yet; the tests marked ``gpu`` compare both with the plain path.

        Args:
            fuse: compile the passes between the products.
            graphs: record each scale; None does so on CUDA.

        Raises:
            ArgumentError: graphs on a device that has none.
            ConfigError: PyTorch cannot compile here. Nothing changes then.
        """
        self.engine.compile_(fuse=fuse, graphs=graphs)
        self._compiled = fuse, graphs

    def uncompile_(self) -> None:
        """Takes :meth:`compile_` back: the pipeline draws what it drew before, bit for bit."""
        self._compiled = None
        if self._engine is not None:
            self._engine.uncompile_()

    def use(self, plan: CompressionPlan | None) -> None:
        """Puts a plan in force, or none; :func:`~sparing.var.apply_` checks it first.

        Raises:
            ConfigError: the original weights were freed.
        """
        self.check_original()
        self.plan, self._engine, self._decoder = plan, None, None

    def free_original_(self) -> None:
        """Frees the weights for which the plan in force has others; see :func:`~sparing.var.apply_`."""
        self.check_original()
        engine, decoder = self.engine, self.decoder
        self._freed = engine.free_original_() + decoder.free_original_() > 0
        for module in (*engine.modules(), *decoder.modules()):
            if isinstance(module, Int8Layer):
                module.pack_()
        return_freed_memory()

    def check_original(self) -> None:
        """Refuses to go on without the original weights.

        Raises:
            ConfigError: they were freed when a plan was applied.
        """
        if self._freed:
            raise ConfigError("pipe: its original weights were freed when a plan was applied; load the model again")

    def to(self, device: str | torch.device | None = None, *, dtype: torch.dtype | None = None) -> Self:
        """Moves both parts to a device and a dtype.

        Args:
            device: None leaves them where they are.
            dtype: float32 or bfloat16; float16 only on CUDA.

        Returns:
            The pipeline itself.

        Raises:
            ArgumentError: a device that is not usable here; another dtype; float16 on a CPU, where it is a thousand
                times slower than float32; or compiled with ``graphs=True``, a device other than CUDA.
            ConfigError: the original weights were freed.
        """
        self.check_original()
        target = self.device if device is None else usable_device(device)
        if dtype is not None and dtype not in _DTYPES:
            raise ArgumentError(f"dtype: expected float32, bfloat16 or, on CUDA, float16, got {dtype}")
        if dtype == torch.float16 and target.type == "cpu":
            raise ArgumentError("dtype: float16 is very slow on CPUs; take bfloat16 or float32")
        if self._compiled is not None and self._compiled[1] and target.type != "cuda":
            raise ArgumentError(f"device: no CUDA graphs on {target.type!r}; call uncompile_() or compile_() first")
        self.tokenizer.to(device=target, dtype=dtype)
        self.tokenizer.quantize.float()
        self.transformer.to(device=target, dtype=dtype)
        self._engine = self._decoder = None
        return self

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | Tensor,
        *,
        guidance_scale: float = 1.5,
        top_k: int = 900,
        top_p: float = 0.96,
        seed: int | None = 0,
        generator: torch.Generator | None = None,
    ) -> VAROutput:
        """Draws one image for each label.

        Args:
            class_labels: (B,) integers in 0..num_classes − 1; num_classes draws without a class.
            guidance_scale: strength of the guidance at the last scale, at least 0.
            top_k: only the most likely codes; 0 for all, and at most as many as there are.
            top_p: only the smallest set of codes with this share, 0 < p ≤ 1.
            seed: of the draw, −2⁶³ to 2⁶⁴ − 1; None draws anew each time.
            generator: takes the seed's place.

        Returns:
            The images, and what they cost.

        Raises:
            ShapeError, DtypeError, ArgumentError: labels or settings out of range.
        """
        vocab_size = self.transformer.config.vocab_size
        settings = SamplingSettings(guidance_scale, min(whole_number(top_k, "top_k"), vocab_size), top_p)
        settings.check(vocab_size)
        seed = _checked_seed(seed)
        if not isinstance(generator, torch.Generator | None):
            raise DtypeError(f"generator: expected a torch.Generator or None, got {type(generator).__name__}")
        try:
            labels = torch.as_tensor(class_labels, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DtypeError(f"class_labels: expected integers: {error}") from None
        if is_integer(labels):
            labels = labels.long()
        if generator is None:
            generator = torch.Generator(self.device)
            generator.seed() if seed is None else generator.manual_seed(seed)
        with PeakMemory(self.device) as memory:
            start = time.perf_counter()
            tokens, f_hat = self.engine.generate(labels, self.tokenizer.quantize, settings, generator)
            images = self.decoder(f_hat).cpu()
            latency_s = time.perf_counter() - start
        # Copies: what inference mode made cannot be used where gradients are.
        return VAROutput(images.clone(), [t.cpu().clone() for t in tokens], latency_s, memory.peak_bytes)

    def _save_pretrained(self, save_directory: Path, *, weight_bits: Literal[8] | None = None) -> None:
        parts = PipelineParts(self.tokenizer, self.transformer, self.class_names, self.plan)
        write_parts(Path(save_directory), parts, weight_bits=weight_bits)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        weight_bits: Literal[8] | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """Writes config.json, the weights as safetensors, the plan in force as JSON, and a card if there is none.

        A save that is killed leaves what was there before.

        Args:
            save_directory: made if needed.
            weight_bits: 8 rounds large weights to codes of a byte, a step for each output channel: a quarter of the
                file, which loads as float32. With a plan in force the weights must have been loaded from such a file:
                it was made for them.
            repo_id: of the hub; None takes the folder's name.
            push_to_hub: also upload.
            model_card_kwargs: for the card.
            **options: for the upload: ``commit_message``, ``private``, ``token``, ``branch``, ``create_pr``.

        Returns:
            The address of the upload, or None.

        Raises:
            ArgumentError: other bits, or options where nothing is uploaded.
            BusyError: another process is saving to the folder.
            ConfigError: the plan in force was made for other weights than there are now, for example before they were
                trained on or became float16, or than rounding would leave; or they were freed.
            OSError: the folder cannot be written.
        """
        if weight_bits not in (None, 8):
            raise ArgumentError(f"weight_bits: expected 8 or None, got {weight_bits!r}")
        if options and not push_to_hub:
            raise ArgumentError(f"{', '.join(options)}: no options of save_pretrained without push_to_hub=True")
        # Not the mixin's own: it removes config.json before it writes, and being killed there would lose the model.
        self.check_original()
        _check_parts(self.tokenizer, self.transformer)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self.plan is not None and weights_fingerprint(self.transformer) != self.plan.weights:
            raise ConfigError(
                "pipe: its weights are not those that the plan in force was made for (trained on, loaded, or float16); "
                "call remove_(pipe) and make the plan anew, or save without one"
            )
        if weight_bits is not None and self.plan is not None and not is_packed_exactly(self.transformer.state_dict()):
            raise ConfigError(
                "weight_bits: the plan in force was made for the weights as they are; save without a plan, load that, "
                "and make the plan anew"
            )
        self._save_pretrained(folder, weight_bits=weight_bits)
        card = folder / _CARD
        if not card.exists():
            with replace_file(card) as file:
                file.write(str(self.generate_model_card(**(model_card_kwargs or {}))).encode())
        return upload_parts(folder, repo_id or folder.name, **options) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Uploads what :meth:`save_pretrained` writes.

        Args:
            repo_id: OWNER/NAME.
            **options: of :meth:`save_pretrained`.

        Returns:
            The address of the upload.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(folder, repo_id=repo_id, push_to_hub=True, **options)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> Self:  # type: ignore[override]
        """Loads a pipeline.

        Args:
            source: a folder that :meth:`save_pretrained` wrote; ``"cifar10"``, the small model that comes with the
                package; or ``"hf://OWNER/NAME"`` for one on the hub, the only form that may use the network.
            **options: ``dtype`` and ``device``; for the hub also those of ``huggingface_hub`` (``revision``, ...).

        Returns:
            The pipeline, with the saved plan in force.

        Raises:
            ArgumentError: no such folder.
            FormatError: a file is missing, weights or plan are truncated or altered, or settings do not fit them.
            VersionError: written in a version that this release does not read.
        """
        name = os.fspath(source)
        shipped = None if Path(name).is_dir() else shipped_folder(name)
        if shipped is None and not name.startswith(_HUB_PREFIX) and not Path(name).is_dir():
            raise ArgumentError(
                f"source: no folder {name!r}; {', '.join(SHIPPED)} comes with the package, and a model on the hub is "
                f"named {_HUB_PREFIX}OWNER/NAME"
            )
        # Not the mixin's own: it reads config.json before we can say what is wrong with it.
        return cls._from_pretrained(model_id=str(shipped or name.removeprefix(_HUB_PREFIX)), **options)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        token: str | bool | None = None,
    ) -> Self:
        folder = Path(model_id)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(
                snapshot_download(
                    model_id,
                    revision=revision,
                    cache_dir=None if cache_dir is None else Path(cache_dir),
                    local_files_only=local_files_only,
                    force_download=force_download,
                    token=token,
                )
            )
        parts = read_parts(folder)
        pipe = cls(parts.tokenizer, parts.transformer, class_names=parts.class_names)
        if parts.plan is not None:
            from sparing.var.apply import apply_

            apply_(pipe, parts.plan)
        return pipe.to(device, dtype=dtype) if dtype is not None or device is not None else pipe

    @classmethod
    def from_released(
        cls,
        transformer: str | os.PathLike[str],
        tokenizer: str | os.PathLike[str],
        *,
        patch_nums: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Loads the files that the authors of VAR released, ``.pth`` or safetensors.

        Args:
            transformer: for example ``var_d16.pth``.
            tokenizer: ``vae_ch160v4096z32.pth``.
            patch_nums: side of each scale, where the transformer's is none of the released schedules.
            dtype: of the weights; None leaves them as they are in the files (float32), but makes float64 float32.
            device: None for the CPU.

        Raises:
            FormatError, ConfigError, NonFiniteError: files that are damaged, of something else, or do not fit together.
        """
        model = transformer_from(read_state(transformer), patch_nums=patch_nums)
        images = tokenizer_from(read_state(tokenizer), patch_nums=model.config.patch_nums)
        if torch.float64 in (model.head.weight.dtype, images.post_quant_conv.weight.dtype):
            model, images = model.float(), images.float()
        pipe = cls(images, model)
        return pipe.to(device, dtype=dtype) if dtype is not None or device is not None else pipe


def _check_parts(tokenizer: VQVAE, transformer: VARTransformer) -> None:
    theirs, ours = tokenizer.config, transformer.config
    for name in ("patch_nums", "vocab_size", "z_channels"):
        if getattr(theirs, name) != getattr(ours, name):
            raise ConfigError(
                f"transformer: {name} is {getattr(ours, name)}, but the tokenizer's is {getattr(theirs, name)}"
            )
    weights = {
        "tokenizer": [p for name, p in tokenizer.named_parameters() if not name.startswith("quantize.")],
        "transformer": list(transformer.parameters()),
    }
    for part, parameters in weights.items():
        dtypes = {parameter.dtype for parameter in parameters}
        if len(dtypes) > 1 or not dtypes <= set(_DTYPES):
            found = ", ".join(sorted(map(str, dtypes)))
            raise DtypeError(f"{part}: expected weights of one dtype, {', '.join(map(str, _DTYPES))}, got {found}")
