"""Every option with every other, against the oracle, in float64: all pairs for certain, and more by chance."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cynosure.loss import cross_entropy, linear_cross_entropy
from tests.loss import oracle
from tests.loss.cases import KINDS, REDUCTIONS, Case, assert_same, evaluate, make_case

pytestmark = pytest.mark.usefixtures("poison_empty")

AXES = {
    "kind": KINDS,
    "lead": [(5,), (2, 5), (2, 2, 4), (1,), ()],
    "v": [6, 1, 2],
    "reduction": REDUCTIONS,
    "bias": [False, True],
    "class_weight": [False, True],
    "token_weight": [None, "constant", "learned"],
    "ignore_index": [-100, -1, 0],
    "label_smoothing": [0.0, 0.1, 1.0],
    "z_loss": [0.0, 0.05],
    "softcap": [None, 2.0],
    "scale": [1.0, 0.4],
    "normalizer": [None, 3.5, "tensor"],
    "shift": [0, 1, 2],
    "chunk_tokens": [None, 1, 3, 4, 1000],
}


def clash(drawn: dict) -> bool:
    """Choices that contradict each other, whose errors test_bad_input.py holds."""
    reduction, lead = drawn.get("reduction"), drawn.get("lead")
    return (
        (drawn.get("normalizer") is not None and reduction not in ("mean", None))
        or (lead is not None and drawn.get("shift", 0) >= (*(0,), *lead)[-1] and drawn.get("shift", 0) > 0)
        or (drawn.get("kind", "indices") != "indices" and drawn.get("ignore_index", -100) >= 0)
    )


def all_pairs() -> list[dict]:
    """Few rows that hold every pair of choices: greedily, each row takes what covers most pairs still missing."""
    missing = {
        frozenset([(a, i), (b, j)])
        for a, b in combinations(AXES, 2)
        for i, x in enumerate(AXES[a])
        for j, y in enumerate(AXES[b])
        if not clash({a: x, b: y})
    }
    rows = []
    while missing:
        pair = min(missing, key=sorted)
        row = dict(pair)
        for axis in (a for a in AXES if a not in row):
            allowed = [i for i in range(len(AXES[axis])) if not clash(chosen({**row, axis: i}))]
            row[axis] = max(
                allowed, key=lambda i, a=axis: sum(frozenset([(a, i), item]) in missing for item in row.items())
            )
        missing -= {frozenset(p) for p in combinations(row.items(), 2)}
        rows.append(chosen(row))
    return rows


def chosen(row: dict) -> dict:
    return {axis: AXES[axis][i] for axis, i in row.items()}


def build(drawn: dict, seed: int = 0) -> tuple[Case, dict]:
    drawn = dict(drawn)
    how = {"chunk_tokens": drawn.pop("chunk_tokens")}
    if drawn["normalizer"] == "tensor":
        drawn["normalizer"] = torch.tensor(2.5, dtype=torch.float64)
    if drawn["reduction"] != "mean":
        del drawn["normalizer"]
    frozen = ["token_weight"] if drawn["token_weight"] == "constant" else []
    drawn["token_weight"] = drawn["token_weight"] is not None
    return make_case(d=4, seed=seed, **drawn).freeze(*frozen), how


def on_logits(hidden, weight, target, *, bias=None, **options):
    return cross_entropy(F.linear(hidden, weight, bias), target, **options)


def check(case: Case, how: dict, backend: str) -> None:
    truth = evaluate(oracle.loss, case)
    assert_same(evaluate(linear_cross_entropy, case, backend=backend, **how), truth)
    assert_same(evaluate(on_logits, case, backend=backend), truth)


PAIRS = all_pairs()


def test_the_pairs_are_all_there():
    seen = {frozenset([(a, r[a]), (b, r[b])]) for r in PAIRS for a, b in combinations(AXES, 2)}
    possible = {
        frozenset([(a, x), (b, y)])
        for a, b in combinations(AXES, 2)
        for x in AXES[a]
        for y in AXES[b]
        if not clash({a: x, b: y})
    }
    assert possible <= seen


@pytest.mark.parametrize("drawn", PAIRS, ids=[f"row{i}" for i in range(len(PAIRS))])
def test_every_pair_of_options(drawn, backend):
    check(*build(drawn), backend)


@st.composite
def anything(draw):
    drawn = {axis: draw(st.sampled_from(choices)) for axis, choices in AXES.items()}
    if drawn["reduction"] != "mean":
        drawn["normalizer"] = None
    if drawn["kind"] != "indices":
        drawn["ignore_index"] = -100
    length = drawn["lead"][-1] if drawn["lead"] else 1
    drawn["shift"] = min(drawn["shift"], length - 1)
    drawn["v"] = draw(st.integers(1, 9))
    drawn["scale"] = draw(st.floats(0.05, 3))
    drawn["softcap"] = draw(st.none() | st.floats(0.5, 20))
    drawn["label_smoothing"] = draw(st.floats(0, 1))
    return drawn


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=anything(), seed=st.integers(0, 2**16))
@pytest.mark.exhaustive
def test_any_combination_of_options(drawn, seed, backend):
    check(*build(drawn, seed), backend)
