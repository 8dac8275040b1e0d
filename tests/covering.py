"""Choose the cases of a parametrized test for the fast suite: few, but with every pair of parameter values.

A bug that one value or two values together trigger is still found. The other cases are marked `exhaustive`. Of these
`make test-all` runs as many as hold every three values together; the rest are marked `each_variant`. Slow tests marked
`each_value` have a value less: the fast suite covers each value, and `make test-all` every pair.
"""

import heapq
import os
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, groupby
from typing import Any

import pytest

# Triton's interpreter takes a second for a test: its cases cover each single value.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

Case = Mapping[str, Any]  # the value of each parameter


def asked(case: Case, n_together: int = 2) -> set[object]:
    """Return what a case covers: its combinations of `n_together` values, by their identities.

    Backends of one family are compiled from the same source. All except the best one run once per test with more
    parameters, and otherwise not at all.
    """
    if case.get("backend") in other_backends():
        return {case["backend"]} if len(case) > 1 else set()
    return together(case, 1 if INTERPRETED else n_together)


def together(case: Case, n_together: int) -> set[object]:
    """Return all sets of so many values of a case."""
    values = [(name, id(case[name])) for name in sorted(case)]
    return set(combinations(values, min(n_together, len(values))))


@cache
def other_backends() -> frozenset[str]:
    """Return the available backends that are not the best of their family, and those that cannot run here."""
    from cynosure.loss.backends.registry import backends

    best: dict[str, str] = {}
    for name, available, _ in backends():
        if available:
            best.setdefault(name.partition("-")[0], name)
    return frozenset(backend.name for backend in backends()) - frozenset(best.values())


def covering(wanted: Sequence[set[object]]) -> set[int]:
    """Return the indices of few cases that together cover everything wanted: the greedy choice, always the same.

    >>> cases = [{"a": a, "b": b, "c": c} for a in range(3) for b in range(3) for c in range(3)]
    >>> len(covering([asked(case) for case in cases])), len(covering([{1}, {2}, {1, 2}]))
    (10, 1)
    """
    left = set().union(*wanted)
    queue = [(-len(pairs), place) for place, pairs in enumerate(wanted)]
    heapq.heapify(queue)
    chosen: set[int] = set()
    while left:
        gain, place = heapq.heappop(queue)
        now = len(wanted[place] & left)
        if now == -gain:
            chosen.add(place)
            left -= wanted[place]
        elif now:
            heapq.heappush(queue, (-now, place))
    return chosen


def mark_the_rest(items: Sequence[pytest.Item]) -> None:
    """Mark as `exhaustive` the cases of each test that the fast suite leaves out, and as `each_variant` those that
    `make test-all` leaves out as well.
    """
    cases = [item for item in items if hasattr(item, "callspec")]
    for _, group in groupby(sorted(cases, key=name_of), key=name_of):
        same = list(group)
        mark_exhaustive([item for item in same if item.get_closest_marker("exhaustive") is None])
        mark_variants(same)


def mark_exhaustive(same: Sequence[pytest.Item]) -> None:
    """Mark the cases of a test that are not in its covering.

    A test marked `each_value` is too slow for every pair: its cases cover each single value.
    """
    n_together = 1 if same and same[0].get_closest_marker("each_value") else 2
    chosen = covering([asked(params_of(item), n_together) for item in same])
    for place, item in enumerate(same):
        if place not in chosen:
            item.add_marker(pytest.mark.exhaustive)


def mark_variants(same: Sequence[pytest.Item]) -> None:
    """Mark the cases of a test beyond those with every three values together; every two of a test marked `each_value`.

    Backends other than the best of their family, whose kernels are the same source, get a covering of each value.
    """
    n_together = 2 if same[0].get_closest_marker("each_value") else 3
    backends: dict[str | None, list[pytest.Item]] = {}
    for item in same:
        backend = params_of(item).get("backend")
        backends.setdefault(backend if backend in other_backends() else None, []).append(item)
    for backend, of_backend in backends.items():
        n_values = n_together if backend is None else 1
        if len(params_of(of_backend[0])) <= n_values:
            continue
        wanted = [together(params_of(item), n_values) for item in of_backend]
        fast = {place for place, item in enumerate(of_backend) if item.get_closest_marker("exhaustive") is None}
        covered = set().union(*(wanted[place] for place in fast))
        chosen = fast | covering([values - covered for values in wanted])
        for place, item in enumerate(of_backend):
            if place not in chosen:
                item.add_marker(pytest.mark.each_variant)


def params_of(item: pytest.Item) -> Case:
    """Return the parameters of a case of a parametrized test."""
    return item.callspec.params


def name_of(item: pytest.Item) -> str:
    """Return the name of a test without its parameters."""
    return item.nodeid.partition("[")[0]
