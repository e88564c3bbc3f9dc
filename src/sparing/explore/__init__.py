"""Choosing among candidates: Pareto fronts, and allocation of an error budget over sites."""

from sparing.explore.allocate import Allocation, allocate_exact, allocate_greedy
from sparing.explore.pareto import best_under_budget, hypervolume, pareto_front

__all__ = [
    "Allocation",
    "allocate_exact",
    "allocate_greedy",
    "best_under_budget",
    "hypervolume",
    "pareto_front",
]
