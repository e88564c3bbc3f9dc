"""The page's section on image generation: the images side by side, what is left out, what it costs."""

import io
import statistics

import numpy as np
import torch
from frame import Section, cards, data_url, table, text
from numpy.typing import NDArray
from PIL import Image

from sparing.var import CompressionPlan, VARPipeline, image_grid
from var_demo.measure import NUM_EACH, ROUNDS, Comparison, counted, kept

GAIN = 2
_MILLION, _MILLI = 1e6, 1e3


def amount(name: str, value: int) -> str:
    """A counted number for people."""
    return f"{value / _MILLION:,.2f} M" + "B" * name.endswith("bytes")


def cost_rows(pipe: VARPipeline) -> list[list[str]]:
    """Name, number without the plan, number with it, and the change; counted."""
    return [
        [name, amount(name, before), amount(name, after), f"{after / before - 1:+.1%}"]
        for name, (before, after) in counted(pipe).items()
    ]


def time_rows(found: Comparison) -> list[list[str]]:
    """How, median, least and most milliseconds an image; measured."""
    return [
        [how, *(f"{_MILLI * pick(times) / len(found.names):.1f}" for pick in (statistics.median, min, max))]
        for how, times in (("without the plan", found.before_s), ("with it", found.after_s))
    ]


def speeds(found: Comparison) -> list[float]:
    """How many times as fast drawing is with the plan, round by round: a busy moment meets both sides of a round."""
    return [before / after for before, after in zip(found.before_s, found.after_s, strict=True)]


def verdict(found: Comparison) -> str:
    """Whether the plan saves time on this machine."""
    ratios = speeds(found)
    numbers = f"{statistics.median(ratios):.2f} times as fast with the plan ({min(ratios):.2f} to {max(ratios):.2f})"
    if min(ratios) > 1:
        return numbers
    slower = max(ratios) < 1
    return f"{'not faster' if slower else 'no clear difference'}: {numbers}; a model this small may gain no time"


def plan_parts(plan: CompressionPlan) -> list[str]:
    """What a plan does, in words."""
    depth, precision, parts = plan.model.depth, plan.precision, []
    windowed = sum(any(w >= 0 for rows in layer for row in rows or () for w in row) for layer in plan.windows or ())
    if windowed:
        parts.append(f"attention only within windows in {windowed} of {depth} layers")
    if plan.sharing is not None and (shared := sum(first is not None for first in plan.sharing.first_scale)):
        what = "attention" if plan.sharing.variant == "output" else "attention's maps"
        parts.append(f"{what} computed once for both branches of the guidance in {shared} of {depth} layers")
    if precision is not None:
        if precision.linears:
            bits = sorted({str(form.weight_bits or "all") for form in precision.linears.values()})
            parts.append(f"weights of {len(precision.linears)} linear layers in {' or '.join(bits)} bits")
        numbers = {
            "keys and values": precision.kv_bits,
            "attention's numbers (simulated)": precision.attention_bits,
            "the image decoder": precision.decoder_bits,
        }
        parts += [f"{name} in {bits} bits" for name, bits in numbers.items() if bits is not None]
    return parts


def moved(plan: CompressionPlan) -> str | None:
    """How far the plan moves the predictions, as measured when it was made; None where its notes do not say."""
    error = plan.notes.get("divergence_measured")
    return f"{error:.3f}" if isinstance(error, float) else None


def section(pipe: VARPipeline, plan: CompressionPlan, found: Comparison, *, about: str) -> Section:
    """Makes the section.

    Args:
        pipe: with the plan in force.
        plan: the plan.
        found: what was drawn and measured.
        about: a sentence on the model, for people.
    """
    attention, macs, transformer, decoder, _ = counted(pipe).values()
    weights = transformer[0] + decoder[0], transformer[1] + decoder[1]
    numbers = {
        "of attention computation left out (counted)": _saved(*attention),
        "of the transformer's multiply-adds left out (counted)": _saved(*macs),
        "of the bytes of transformer and image decoder left out (counted)": _saved(*weights),
        "times as fast, median of the rounds (measured)": f"{statistics.median(speeds(found)):.2f}",
        "of the tokens the same for the same seed (measured)": f"{found.same:.0%}",
    }
    if (error := moved(plan)) is not None:
        numbers["nats a token: how far the plan moves the predictions (measured when it was made)"] = error
    unknown = "" if error is not None else " What it does to quality was not measured."
    return Section(
        "Image generation, with less",
        f"""
<p>One model, the same seeds and classes, drawn as it is and with its compression plan in force. {text(about)}</p>
<p>The plan: {text("; ".join(plan_parts(plan)))}. Nothing is trained for it.{unknown}</p>
{cards(numbers)}
<h2>The same seeds, without the plan and with it</h2>{_images(found)}
<h2>Time an image, measured</h2>{table(["milliseconds", "median", "least", "most"], time_rows(found))}
<p>{ROUNDS} rounds in turn of {len(found.names)} images at once, on this machine, threads: {torch.get_num_threads()};
{text(verdict(found))}.</p>
<h2>Cost an image, counted</h2>{table(["", "without", "with", "change"], cost_rows(pipe))}
<h2>Attention that is left, counted</h2>{_map(plan)}
""",
    )


def _saved(before: int, after: int) -> str:
    return f"{1 - after / before:.0%}"


def _images(found: Comparison) -> str:
    scales = ", ".join(f"{share:.0%}" for share in found.same_by_scale)
    apart = np.abs(found.before.astype(np.int32) - found.after) * GAIN
    columns = {
        "without the plan": found.before,
        "with the plan": found.after,
        f"difference × {GAIN}": apart.clip(0, 255).astype(np.uint8),
    }
    head = "".join(f"<th>{text(name)}</th>" for name in columns)
    rows = "".join(
        f"<tr><th>{text(name)}</th>"
        + "".join(
            f"<td><img alt='{text(f'{name}, {column}')}' src='{_strip(part[i * NUM_EACH : (i + 1) * NUM_EACH])}'></td>"
            for column, part in columns.items()
        )
        + "</tr>"
        for i, name in enumerate(found.names)
    )
    return f"""<figure class="wide"><table class="images"><tr><th></th>{head}</tr>{rows}</table>
<figcaption>An image is drawn token by token, coarse to fine. One token drawn otherwise changes what is drawn after
it, so the same seed can end in another image of the class; that alone is no loss of quality.
Tokens the same, scale by scale: {scales}.</figcaption></figure>"""


def _strip(images: NDArray[np.uint8]) -> str:
    out = io.BytesIO()
    Image.fromarray(image_grid(images, len(images), scale=1, gap=1)).save(out, "PNG")
    return data_url("image/png", out.getvalue())


def _map(plan: CompressionPlan) -> str:
    sides = plan.model.patch_nums
    head = "".join(f"<th>{side}×{side}</th>" for side in sides)
    rows = "".join(
        f"<tr><th>{layer}</th>{''.join(_cell(share, plan.shares(layer, s)) for s, share in enumerate(row))}</tr>"
        for layer, row in enumerate(kept(plan))
    )
    return f"""<figure><table class="map"><tr><th>layer</th>{head}</tr>{rows}</table>
<figcaption>Share of attention computation that the plan leaves, by layer and scale. Underlined: computed once for
both branches of the guidance, with the class and without.</figcaption></figure>"""


def _cell(share: float, shared: bool) -> str:
    number = f"<u>{share:.0%}</u>" if shared else f"{share:.0%}"
    return f"<td style='--kept: {share:.2f}'>{number}</td>"
