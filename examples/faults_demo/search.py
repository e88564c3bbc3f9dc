"""A tiny architecture search: cells by evolution, each network trained for itself and judged under stuck bits."""

from dataclasses import dataclass

import numpy as np
import torch

from sparing.explore import Evolution, EvolutionConfig, pareto_front
from sparing.faults import StuckAt, fixed_point_
from sparing.nas import CellNetwork, Genotype, SearchSpace, network_cost
from sparing.nas.evaluation import Measured, batches_of, measure
from sparing.nas.images import parted
from sparing.runs.progress import Progress
from sparing.vision import ClassifierTrainingConfig, ImageDataset, to_float, train_classifier_

CANDIDATES, POPULATION, EPOCHS, CHANNELS, CELLS, SEED = 12, 6, 3, 4, 3, 0
FAULT, DRAWS, NEW_DRAWS, CALIBRATION = StuckAt(rate=0.04, form="bit"), 6, 20, 256
SPACE = SearchSpace("weight")


@dataclass(frozen=True)
class Candidate:
    """An architecture that was trained and judged.

    Attributes:
        number: in the order of the search.
        genotype: its cells.
        macs: multiply-adds for one image; counted.
        found: accuracies on held-out images.
        network: trained, in 8 bits.
    """

    number: int
    genotype: Genotype
    macs: int
    found: Measured
    network: CellNetwork

    @property
    def costs(self) -> list[float]:
        """What evolution makes small."""
        return [-self.found.clean_accuracy, -self.found.faulty_accuracy, float(self.macs)]


@dataclass(frozen=True)
class Searched:
    """What the search found.

    Attributes:
        candidates: all, in the order of the search.
        front: those that no other beats in clean accuracy, accuracy under faults and MACs at once, by MACs.
        chosen: that of the best mean of both accuracies.
        test: accuracies of the chosen network on test images, under draws of faults that the search has not seen.
        num_held_out: images that architectures were judged on.
    """

    candidates: list[Candidate]
    front: list[Candidate]
    chosen: Candidate
    test: Measured
    num_held_out: int


def search(train: ImageDataset, test: ImageDataset, progress: Progress, *, seed: int = SEED) -> Searched:
    """Breeds, trains and judges architectures; test images have no part in the choice."""
    weights, held_out = parted(train, 0.8, seed=seed)
    evolution = Evolution(SPACE.num_options, seed=seed, config=EvolutionConfig(population=POPULATION))
    known: dict[tuple[int, ...], Candidate] = {}
    while len(known) < CANDIDATES:
        vectors = [tuple(SPACE.canonical(vector).tolist()) for vector in evolution.ask()]
        for vector in vectors:
            if vector not in known:
                known[vector] = _judged(len(known), vector, weights, held_out, seed)
                progress("architectures", min(len(known), CANDIDATES), CANDIDATES)
        evolution.tell([known[vector].costs for vector in vectors], [0.0] * len(vectors))
    candidates = list(known.values())
    front = pareto_front(np.array([one.costs for one in candidates]))
    chosen = max(candidates, key=lambda one: one.found.reward(0.5))
    batches = batches_of(test, range(len(test)), len(test), torch.device("cpu"))
    draws = range(DRAWS, DRAWS + NEW_DRAWS)
    on_test = measure(chosen.network, batches, FAULT, seed=seed, draws=draws)
    on_front = sorted((candidates[i] for i in front), key=lambda one: one.macs)
    return Searched(candidates, on_front, chosen, on_test, len(held_out))


def _judged(
    number: int, vector: tuple[int, ...], weights: ImageDataset, held_out: ImageDataset, seed: int
) -> Candidate:
    genotype = SPACE.decode(np.array(vector))
    network = CellNetwork(genotype, weights.num_classes, channels=CHANNELS, num_cells=CELLS, seed=seed)
    config = ClassifierTrainingConfig(
        epochs=EPOCHS, batch_size=64, flip=False, crop_padding=0, seed=seed, precision="float32"
    )
    train_classifier_(network, weights, config=config)
    fixed_point_(network, to_float(weights.images[:CALIBRATION]))
    batches = batches_of(held_out, range(len(held_out)), len(held_out), torch.device("cpu"))
    found = measure(network, batches, FAULT, seed=seed, draws=range(DRAWS))
    size = weights.images.shape[-1]
    cost = network_cost(genotype, image_size=size, channels=CHANNELS, num_cells=CELLS, num_classes=weights.num_classes)
    return Candidate(number, genotype, cost.num_macs, found, network)
