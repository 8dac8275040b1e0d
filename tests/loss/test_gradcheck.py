"""Gradients against finite differences, for every differentiable input, every reduction, every kind of target."""

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import cross_entropy, linear_cross_entropy, token_logprobs
from tests.loss.cases import KINDS, REDUCTIONS, make_case

pytestmark = [pytest.mark.usefixtures("poison_empty"), pytest.mark.many_rows]

EVERYTHING = {
    "bias": True,
    "class_weight": True,
    "token_weight": True,
    "label_smoothing": 0.1,
    "z_loss": 0.05,
    "softcap": 2.5,
    "scale": 0.8,
    "shift": 1,
}
OPTIONS = {"plain": {}, "everything": EVERYTHING}


def gradcheck(op, case, **how):
    leaves = case.leaves()

    def f(*tensors):
        return case.with_leaves(dict(zip(leaves, tensors, strict=True))).call(op, **how)

    assert torch.autograd.gradcheck(f, [x.detach().clone().requires_grad_() for x in leaves.values()])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linear_cross_entropy(reduction, kind, options, backend):
    case = make_case(lead=(2, 3), d=2, v=4, kind=kind, reduction=reduction, **OPTIONS[options])
    gradcheck(linear_cross_entropy, case, backend=backend, chunk_tokens=3)


def test_mean_over_a_given_normalizer(backend):
    case = make_case(lead=(5,), d=2, v=4, normalizer=3.5, **{**EVERYTHING, "shift": 0})
    gradcheck(linear_cross_entropy, case, backend=backend, chunk_tokens=2)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cross_entropy(reduction, kind, options, backend):
    case = make_case(lead=(2, 3), d=2, v=4, kind=kind, reduction=reduction, **OPTIONS[options])

    def on_logits(hidden, weight, target, *, bias=None, **rest):
        return cross_entropy(F.linear(hidden, weight, bias), target, **rest)

    gradcheck(on_logits, case, backend=backend)


def test_token_logprobs(backend):
    case = make_case(lead=(2, 4), d=3, v=5, bias=True, softcap=2.5, scale=0.8, shift=1)
    gradcheck(token_logprobs, case, backend=backend, chunk_tokens=3)
