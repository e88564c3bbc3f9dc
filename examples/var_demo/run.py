"""Compressed image generation at work: draws the same seeds with a model's plan and without, and compares."""

import torch
from frame import Section
from rich.table import Table
from terminal import bars, console, step

from sparing.var import CompressionPlan, SharingPlan, VARPipeline, apply_
from sparing.var.pipeline import weights_fingerprint
from var_demo.measure import NUM_EACH, compare
from var_demo.page import cost_rows, moved, plan_parts, section, time_rows, verdict

_NO_PLAN = (
    "the model came without a plan; for this run attention is computed once for both branches of the guidance in the "
    "later half of the scales, which nobody calibrated (`sparing var calibrate` makes a real plan)"
)


def load(model: str) -> tuple[VARPipeline, CompressionPlan]:
    """Loads a pipeline and puts a plan in force if it came with none, saying so."""
    pipe = VARPipeline.from_pretrained(model)
    if pipe.plan is None:
        console.print(f"  [yellow]{_NO_PLAN}[/]")
        config = pipe.transformer.config
        sharing = SharingPlan(variant="output", first_scale=(len(config.patch_nums) // 2,) * config.depth)
        plan = CompressionPlan(model=config, weights=weights_fingerprint(pipe.transformer), sharing=sharing)
        apply_(pipe, plan)
        return pipe, plan
    return pipe, pipe.plan


def show_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Shows names and numbers."""
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(head):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def run(model: str) -> Section:
    """Shows the system, and returns what the page says about it.

    Args:
        model: a name or folder for ``VARPipeline.from_pretrained``.
    """
    step("loading an image model and its compression plan")
    pipe, plan = load(model)
    config, size = pipe.transformer.config, pipe.tokenizer.config.image_size
    about = (
        f"A small model, {pipe.transformer.num_parameters / 1e6:.1f} million parameters in the transformer, "
        f"{config.num_classes} classes, {size}×{size} pixels."
    )
    if model == "cifar10":
        about += " It was trained on CIFAR-10 on a CPU: expect rough sketches, many recognisable, not photographs."
    console.print(f"  {about}")
    for part in plan_parts(plan):
        console.print(f"  the plan: {part}")
    step(f"drawing {NUM_EACH} images of each class twice, without the plan and with it, and timing both")
    with bars() as progress:
        found = compare(pipe, progress)
    costs = cost_rows(pipe)
    show_table("cost an image, counted", ["", "without the plan", "with it", "change"], costs)
    title = f"milliseconds an image, measured (threads: {torch.get_num_threads()})"
    show_table(title, ["", "median", "least", "most"], time_rows(found))
    error = moved(plan)
    console.print(
        f"  {found.same:.1%} of the tokens are the same for the same seed"
        + ("" if error is None else f"; the plan moves the predictions by {error} nats a token")
    )
    console.print(
        f"[bold green]image generation[/]: attention {costs[0][3]}, all multiply-adds {costs[1][3]}; {verdict(found)}"
    )
    return section(pipe, plan, found, about=about)
