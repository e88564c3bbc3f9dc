"""What people see of `sparing var`: models, plans, training, quality. Machines read JSON instead."""

from typing import Any

from sparing.cli.render import print_pairs

__all__ = ["print_change", "print_model", "print_plan", "print_quality", "print_training"]

_MILLION = 1e6
_BITS = {"kv_bits": "keys and values", "attention_bits": "attention", "decoder_bits": "image decoder"}


def print_model(found: dict[str, Any]) -> None:
    """Shows what `sparing var info` found."""
    rows = {"model": f"{found['name']} ({found['kind']})"}
    for part in ("tokenizer", "transformer"):
        if part in found:
            rows |= _part_rows(part, found[part])
    if found.get("class_names"):
        names = found["class_names"]
        rows["classes"] = ", ".join(names[:10]) + f" and {len(names) - 10} more" * (len(names) > 10)
    if "cost" in found:
        rows |= _cost_rows(found["cost"])
    if "plan" in found:
        rows |= {"plan": "none"} if found["plan"] is None else _plan_rows(found["plan"])
    if "cost_with_plan" in found:
        total = found["cost_with_plan"]["macs_total"]
        rows["with the plan, an image"] = f"{_macs(total)}, {total / found['cost']['macs_total']:.1%} of the above"
    print_pairs(rows)


def _part_rows(part: str, found: dict[str, Any]) -> dict[str, str]:
    config, count = found["config"], found["num_parameters"]
    if part == "tokenizer":
        made_of = (
            f"{config.image_size}×{config.image_size} pixels, {config.downsampling}× down, "
            f"{config.vocab_size:,} codes of {config.z_channels}"
        )
    else:
        made_of = (
            f"{config.depth} blocks, width {config.embed_dim}, {config.num_heads} heads, "
            f"{config.num_classes:,} classes" + ", one adaptive norm for all blocks" * config.shared_adaln
        )
    sides = ", ".join(map(str, found["patch_nums"]))
    return {
        part: made_of,
        f"{part}, parameters": f"{count:,}" + f" ({count / _MILLION:.1f} M)" * (count >= _MILLION),
        f"{part}, in float32 / bfloat16": " / ".join(_bytes(found["bytes"][t]) for t in ("float32", "bfloat16")),
        f"{part}, scales": f"{sides} ({found['num_tokens']:,} tokens)",
    }


def _cost_rows(cost: dict[str, Any]) -> dict[str, str]:
    total = cost["macs_total"]
    kinds = {f"  {name}": f"{_macs(macs)} ({macs / total:.1%})" for name, macs in cost["macs"].items()}
    return {
        "an image, with guidance": f"{_macs(total)} in the transformer; counted",
        **kinds,
        f"weights in {cost['dtype']}": _bytes(cost["weight_bytes"]),
        f"keys and values in {cost['dtype']}": f"{_bytes(cost['cache_bytes'])} an image",
    }


def _scaled(value: float) -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {prefix}"
    return f"{value:.4g} "


def _macs(value: float) -> str:
    return f"{_scaled(value)} multiply-adds".replace("  ", " ")


def _bytes(value: float) -> str:
    return f"{_scaled(value)}B"


def _plan_rows(summary: dict[str, Any]) -> dict[str, str]:
    """Names and values of what :func:`~sparing.cli.var_plan.plan_summary` gives."""
    windows, sharing, precision = summary["windows"], summary["sharing"], summary["precision"]
    rows = {
        "plan, attention removed": f"{summary['attention_removed']:.1%} ({summary['windows_removed']:.1%} by windows)",
        "  of all multiply-adds": f"{summary['macs_removed']:.1%}",
        "  windows": "none" if not windows else f"in {len(windows)} layers: {', '.join(map(str, windows))}",
        "  sharing": "none"
        if sharing is None
        else f"{sharing['variant']}, from scale "
        + ", ".join("-" if first is None else str(first) for first in sharing["first_scale"])
        + " (a layer each)",
        "  precision": "as it is" if precision is None else _precision(precision),
    }
    if "divergence_measured" in summary["notes"]:
        rows["  divergence"] = f"{summary['notes']['divergence_measured']:.4g} nats a token, measured"
    return rows


def _precision(precision: dict[str, Any]) -> str:
    parts = [f"{count} layers {form}" for form, count in precision["linears"].items()]
    parts += [f"{what} {precision[key]} bits" for key, what in _BITS.items() if precision[key] is not None]
    return ", ".join(parts) or "as it is"


def print_plan(answer: dict[str, Any]) -> None:
    """Shows what `sparing var calibrate` wrote."""
    rows = _plan_rows(answer["plan"])
    rows["written"] = ", ".join(answer["files"])
    print_pairs(rows)


def print_change(answer: dict[str, Any]) -> None:
    """Shows what `sparing var compress` changed."""
    before, after = answer["before"], answer["after"]
    rows = {"written": answer["folder"]}
    for name, key, show in (
        ("attention, an image", "attention_macs", _macs),
        ("transformer, an image", "macs", _macs),
        ("weights", "weight_bytes", _bytes),
        ("keys and values, an image", "cache_bytes", _bytes),
    ):
        old, new = before[key], after[key]
        rows[name] = f"{show(old)} → {show(new)} ({new / old - 1:+.1%})"
    print_pairs(rows)


def print_training(answer: dict[str, Any]) -> None:
    """Shows how a training went."""
    rows = {
        "written": ", ".join(answer["files"]),
        "parameters": f"{answer['num_parameters']:,}",
        "steps": f"{answer['steps']:,} in all; this run took {answer['seconds']:.1f} s",
    }
    if answer["last"]:
        rows |= {f"  {name}": f"{value:.5g}" for name, value in answer["last"].items() if name != "step"}
    print_pairs(rows)


def print_quality(answer: dict[str, Any]) -> None:
    """Shows how good drawn images are."""
    report = answer["quality"]
    per_scale = ", ".join(f"{value:.3f}" for value in answer["cross_entropy"])
    print_pairs(
        {
            "images drawn": f"{report.num_samples:,}, against {answer['num_real']:,} of {answer['data']}",
            "plan": "none"
            if answer["plan"] is None
            else f"{answer['plan']['attention_removed']:.1%} of attention removed",
            "features": report.features,
            "Fréchet distance": f"{report.frechet:.4f} (not FID: other features)",
            "class agreement": f"{report.class_agreement:.2%}",
            "precision, recall": f"{report.precision:.4f}, {report.recall:.4f}",
            "cross-entropy, nats a token": f"{answer['cross_entropy_mean']:.4f} on {answer['num_taught']:,} images",
            "  by scale": per_scale,
        }
    )
