"""`python examples/pim/walkthrough.py`: a network of one's own onto processing-in-memory crossbars, step by step.

report → search → convert → quantize and fine-tune → map → simulate. About three minutes on two cores, most of it
training; nothing is downloaded. Replace `own_model` by a function of yours that returns a `torch.nn.Module`, and give
your pictures with `--data` (CIFAR-10 wants more time: `--pictures 50000 --epochs 20`). Crossbars are counted, other
costs of a chip are modelled, accuracies are simulated on held-out pictures. Needs the extras `vision` and `plot`.
"""

import argparse
import copy
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from own_model import own_model
from pictures import DRAWN, SIDE, open_pictures
from torch import Tensor, nn

from sparing.pim import (
    AdcModel,
    CellVariation,
    CrossbarSize,
    NetworkCells,
    NetworkDesign,
    NetworkMapping,
    NetworkShape,
    change_cells,
    convert_,
    dense_design,
    design_tables,
    error_proxy,
    exact_best,
    execute,
    hardware_report,
    load_hardware,
    load_mapping,
    map_network,
    network_options,
    quantize_,
    save_mapping,
    search_designs,
    trace_layers,
)
from sparing.vision import ClassifierTrainingConfig, ImageDataset, evaluate_classifier, to_float, train_classifier_

BITS = 3
SEED = 0
BATCH = 50


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs all steps."""
    parser = argparse.ArgumentParser(description="A network of one's own on crossbars, step by step.")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="CIFAR-10's binary files, or one sub-folder of pictures for each class (default: digits are drawn)",
    )
    parser.add_argument("--crossbar", default="64", metavar="N|RxC", help="size of a crossbar (default: 64)")
    parser.add_argument("--share", type=float, default=0.3, help="of the dense crossbars to spend (default: 0.3)")
    parser.add_argument("--pictures", type=int, default=4_000, help="to learn from, at most (default: 4000)")
    parser.add_argument("--epochs", type=int, default=8, help="of the float network (default: 8)")
    parser.add_argument("--quick", action="store_true", help="a few pictures and steps: seconds, poor accuracies")
    chosen = parser.parse_args(arguments)
    begin, crossbar = time.perf_counter(), CrossbarSize.parse(chosen.crossbar)
    epochs, tune_epochs, evaluations = (1, 1, 2_000) if chosen.quick else (chosen.epochs, 4, 50_000)
    num_train, num_test, num_replayed = (200, 100, 10) if chosen.quick else (chosen.pictures, 1_000, 200)

    with step("1. Pictures and a float network"):
        train, test = open_pictures(chosen.data, num_train=num_train, num_test=num_test)
        say("pictures", f"{train.name}: {len(train):,} to learn from, {len(test):,} to test with")
        torch.manual_seed(SEED)
        dense = own_model(train.num_classes)
        learn_(dense, train, epochs=epochs, rate=0.05)

    with step("2. Report: what it costs as it is"):
        network = trace_layers(dense, (3, SIDE, SIDE))
        report(network, dense_design(network, bits=BITS), crossbar)

    with step("3. Search: epitomes within a budget of crossbars"):
        design = search(dense, network, crossbar, share=chosen.share, evaluations=evaluations)
        report(network, design, crossbar)

    with step("4. Convert: fit epitomes to the trained weights"):
        model = copy.deepcopy(dense)
        for layer in convert_(model, design):
            stored = f"{layer.num_stored:,} of {layer.num_weights:,} weights stored"
            say(layer.name, f"{stored}, {layer.residual:.0%} of their energy left over")
        say("accuracy, fitted and not yet trained", f"{evaluate_classifier(model, test):.1%}")

    with step(f"5. Quantize to {BITS} bits and fine-tune"):
        quantized = copy.deepcopy(dense)
        for what, one, of in (("dense", quantized, dense_design(network, bits=BITS)), ("epitomes", model, design)):
            quantize_(one, of, crossbar=crossbar, calibration=as_input(train, 4 * BATCH))
            before = evaluate_classifier(one, test)
            learn_(one, train, epochs=tune_epochs, rate=0.03)
            say(f"{what}, {BITS} bits", f"{before:.1%} rounded, {evaluate_classifier(one, test):.1%} fine-tuned")
        say("dense, float", f"{evaluate_classifier(dense, test):.1%}")

    with step("6. Map: cells, steps and tables, into a file and back"):
        mapping = map_and_reload(model, network, design, crossbar)

    with step("7. Simulate: bit by bit, as the chip computes"):
        simulate(model, mapping, test, num_replayed)
    print(f"\nall steps: {time.perf_counter() - begin:.0f} s")


def report(network: NetworkShape, design: NetworkDesign, crossbar: CrossbarSize) -> None:
    """Says what a design takes: crossbars are counted; time, energy and area are modelled."""
    found = hardware_report(network, design, load_hardware("mnsim").with_crossbar(crossbar))
    ratio = found.ratio
    say(f"crossbars of {found.crossbar}", f"{found.num_crossbars_float:,} in float → {found.num_crossbars:,}")
    say("times fewer, bits × epitomes", f"{ratio.bits:.2f} × {ratio.epitome:.2f} = {ratio.total:.2f}")
    chip = found.design
    say("latency, energy, area (modelled)", f"{chip.latency_s:.2e} s, {chip.energy_j:.2e} J, {chip.area_m2:.2e} m²")


def search(
    model: nn.Module, network: NetworkShape, crossbar: CrossbarSize, *, share: float, evaluations: int
) -> NetworkDesign:
    """The design that loses least, by a proxy, within a share of the dense crossbars; evolution beside the optimum."""
    options = network_options(network, crossbar, bits=(BITS,), wrapped=False)
    tables = design_tables(network, crossbar, options, error=error_proxy(model))
    dense = float(tables.totals([tables.choices_of(dense_design(network, bits=BITS))], ["crossbars"])[0, 0])
    budget = math.floor(share * dense)
    say("designs to choose from", f"{float(tables.num_designs):.1e}")
    say("budget", f"{budget} crossbars, {share:.0%} of {dense:.0f}")
    front = search_designs(
        tables, objectives=["crossbars", "error"], limits={"crossbars": budget}, seed=SEED, evaluations=evaluations
    )
    evolved = front.best("error", {"crossbars": budget})
    best = exact_best(tables, objective="error", limit=("crossbars", budget))
    num_weights = sum(layer.num_weights for layer in network.layers)
    for what, found in ((f"evolution, {front.evaluations:,} designs", evolved), ("exact optimum", best)):
        lost = found.costs["error"] / num_weights
        say(what, f"{found.costs['crossbars']:.0f} crossbars, {lost:.3%} of the weights' energy lost (proxy)")
    return best.design


def map_and_reload(
    model: nn.Module, network: NetworkShape, design: NetworkDesign, crossbar: CrossbarSize
) -> NetworkMapping:
    """Puts the codes on crossbars, saves them, and reads them again."""
    mapping = map_network(model, network, design, crossbar)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own_model.mapping"
        save_mapping(mapping, path)
        say("file", f"{path.stat().st_size / 1024:.0f} kB")
        loaded = load_mapping(path)
    say("crossbars", f"{mapping.num_crossbars} mapped, {loaded.num_crossbars} read again")
    say("tables (IFAT, IFRT, OFAT)", f"{sum(loaded.table_bits) / 1000:.1f} kbit")
    return loaded


def simulate(model: nn.Module, mapping: NetworkMapping, test: ImageDataset, count: int) -> None:
    """Replays pictures on the crossbars with an ideal ADC, with real ones, and with cells that are stuck."""
    images, labels = as_input(test, count), torch.from_numpy(test.labels[:count])
    model.eval()
    with torch.no_grad():
        expected = model(images)
    ideal, real = AdcModel(bits=None), AdcModel(bits=6)  # of the sums of 64 lines only 64 has no code
    found = execute(model, mapping, images, adc=ideal)
    error = float((found - expected).abs().max() / expected.abs().max())
    same = float((found.argmax(1) == expected.argmax(1)).float().mean())
    say("pictures", f"{len(images)}, at {accuracy(expected, labels):.1%} by the quantized model")
    say("ideal ADC equals the quantized model", f"{same:.1%} same classes, logits within {error:.1e} of the largest")
    whole = execute(model, mapping, images, adc=ideal, fast=True)
    say("ideal ADC, whole integer products", "equal in every bit" if torch.equal(whole, found) else "NOT EQUAL")
    for adc in (real, AdcModel(bits=5), AdcModel(bits=5, full_scale=62), AdcModel(bits=4)):
        reads = f"ADC of {adc.bits} bits, lsb {adc.lsb:g}"
        say(reads, f"{accuracy(execute(model, mapping, images, adc=adc), labels):.1%}")
    for stuck in (0.001, 0.01, 0.05):
        change = CellVariation(p_stuck_0=0.9 * stuck, p_stuck_1=0.1 * stuck)
        cells: NetworkCells = change_cells(mapping, change, seed=SEED)
        logits = execute(model, mapping, images, adc=real, cells=cells)
        say(f"6 bits, {stuck:.1%} of the cells stuck", f"{accuracy(logits, labels):.1%}")


def learn_(model: nn.Module, train: ImageDataset, *, epochs: int, rate: float) -> None:
    """Trains in float32, which is what the chip's digital parts are simulated in."""
    config = ClassifierTrainingConfig(
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=rate,
        flip=train.name != DRAWN,  # a mirrored digit is none
        crop_padding=2,
        seed=SEED,
        precision="float32",
    )
    result = train_classifier_(model, train, config=config)
    say(f"trained, {epochs} epochs", f"{result.steps:,} steps, last mean loss {result.history[-1].train_loss:.3f}")


def as_input(dataset: ImageDataset, count: int) -> Tensor:
    """The first pictures as the network takes them."""
    return to_float(torch.from_numpy(dataset.images[:count]))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


@contextmanager
def step(title: str) -> Iterator[None]:
    """A heading, and what the step took."""
    print(f"\n{title}", flush=True)
    begin = time.perf_counter()
    yield
    say("took", f"{time.perf_counter() - begin:.1f} s")


def say(what: str, value: str) -> None:
    """One fact a line."""
    print(f"  {what + ':':<40} {value}", flush=True)


if __name__ == "__main__":
    main()
