"""An option that is a number may be Python's, NumPy's, or the one element of a tensor or array."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from cynosure.loss import CrossEntropyLoss, cross_entropy, explain, linear_cross_entropy, token_stats
from tests.loss.cases import assert_same, evaluate, make_case

FOUR = {
    "int64": np.int64(4),
    "float32": np.float32(4),
    "0-d array": np.array(4.0),
    "array of one": np.array([[4]]),
    "fraction": Fraction(8, 2),
    "decimal": Decimal(4),
    "0-d tensor": torch.tensor(4),
    "Trainer's tensor": torch.tensor([4]),
    "three dimensions": torch.full((1, 1, 1), 4.0, dtype=torch.float16),
    "with a gradient": torch.tensor([4.0], requires_grad=True),
}


@pytest.mark.parametrize("four", FOUR)
def test_normalizers(four, backend):
    case = make_case(token_weight=True)
    truth = evaluate(linear_cross_entropy, case.using(normalizer=4.0), backend=backend)
    ours = evaluate(linear_cross_entropy, case.using(normalizer=FOUR[four]), backend=backend)
    assert ours.loss.ndim == 0
    assert_same(ours, truth, tol=0)


def numbers(as_float, as_int):
    """Every option that is a number, in types of one kind."""
    return {
        "label_smoothing": as_float(0.25),
        "scale": as_float(0.5),
        "softcap": as_float(4),
        "z_loss": as_float(0.125),
        "ignore_index": as_int(-100),
        "shift": as_int(1),
    }


PLAIN = numbers(float, int)
KINDS = {
    "NumPy": numbers(np.float32, np.int64),
    "tensors": numbers(torch.tensor, torch.tensor),
    "tensors of one element": numbers(lambda x: torch.tensor([x]), lambda x: torch.tensor([[x]])),
    "arrays": numbers(lambda x: np.array([x]), lambda x: np.array(x)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_other_option(kind, backend):
    case = make_case(lead=(3, 4), class_weight=True)
    chunk_tokens = torch.tensor(5) if "tensors" in kind else np.int32(5)
    ours = evaluate(linear_cross_entropy, case.using(**KINDS[kind]), backend=backend, chunk_tokens=chunk_tokens)
    assert_same(ours, evaluate(linear_cross_entropy, case.using(**PLAIN), backend=backend, chunk_tokens=5), tol=0)
    logits = torch.randn(3, 4, 7)
    assert CrossEntropyLoss(**KINDS[kind])(logits, case.target) == cross_entropy(logits, case.target, **PLAIN)


@pytest.mark.parametrize("temperatures", [np.array([0.5, 2]), torch.tensor([0.5, 2]), (Fraction(1, 2), np.int8(2))])
def test_statistics(temperatures, backend):
    case = make_case()
    truth = token_stats(case.hidden, case.weight, case.target, topk=2, temperatures=[0.5, 2.0], backend=backend)
    ours = token_stats(
        case.hidden, case.weight, case.target, topk=np.int64(2), temperatures=temperatures, backend=backend
    )
    for x, y in zip(ours, truth, strict=True):
        assert torch.equal(x.nan_to_num(), y.nan_to_num())


def test_explain():
    assert explain(100, 5, 7, chunk_tokens=np.int64(10)).n_chunks == 10
