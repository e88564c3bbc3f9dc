"""Choosing among candidates: Pareto fronts, and allocation of an error budget over sites."""

from sparing.explore.allocate import Allocation, allocate_exact, allocate_greedy, allocation_front
from sparing.explore.pareto import best_under_budget, hypervolume, pareto_front

__all__ = [
    "Allocation",
    "allocate_exact",
    "allocate_greedy",
    "allocation_front",
    "best_under_budget",
    "hypervolume",
    "pareto_front",
]
