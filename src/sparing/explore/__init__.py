"""Choosing among candidates: Pareto fronts, allocation of an error budget over sites, and evolutionary search."""

from sparing.explore.allocate import (
    Allocation,
    allocate_exact,
    allocate_exact_front,
    allocate_greedy,
    allocation_front,
)
from sparing.explore.breeding import EvolutionConfig
from sparing.explore.evolution import Evolution, Front, minimize
from sparing.explore.pareto import best_under_budget, front_ranks, hypervolume, pareto_front

__all__ = [
    "Allocation",
    "Evolution",
    "EvolutionConfig",
    "Front",
    "allocate_exact",
    "allocate_exact_front",
    "allocate_greedy",
    "allocation_front",
    "best_under_budget",
    "front_ranks",
    "hypervolume",
    "minimize",
    "pareto_front",
]
