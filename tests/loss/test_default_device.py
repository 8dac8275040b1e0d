"""Tensors on the CPU, while torch's default device is another one: nothing is made on that one."""

import pytest
import torch

from cynosure.loss import cross_entropy, linear_cross_entropy, token_stats
from tests.loss.cases import KINDS, REDUCTIONS, Result, assert_same, evaluate, make_case

pytestmark = pytest.mark.cpu_only


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss(kind, reduction, shift, backend):
    case = make_case(lead=(3, 5), kind=kind, reduction=reduction, shift=shift, bias=True, token_weight=True)
    usual = case.call(linear_cross_entropy, backend=backend)
    upstream, logits = torch.ones_like(usual), case.hidden @ case.weight.mT + case.options["bias"]
    expected = evaluate(linear_cross_entropy, case, upstream, backend=backend)
    with torch.device("meta"):
        ours = evaluate(linear_cross_entropy, case, upstream, backend=backend)
        given = cross_entropy(logits, case.target, **case.without("bias").options, backend=backend)
    assert_same(ours, expected)
    assert_same(Result(given, {}), Result(expected.loss, {}))


def test_statistics(backend):
    case = make_case(lead=(3, 5), shift=1)
    how = {"topk": 2, "temperatures": [0.5, 1.0, 2.0], "backend": backend}
    expected = case.call(token_stats, **how)
    with torch.device("meta"):
        ours = case.call(token_stats, **how)
    for name, x, y in zip(ours._fields, ours, expected, strict=True):
        torch.testing.assert_close(x, y, equal_nan=True, msg=name)
