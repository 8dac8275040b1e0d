"""Log-probabilities of 0 and of -1e4: values and gradients are finite wherever the maths is."""

import math

import pytest
import torch

from cynosure import losses
from tests.losses.cases import SEQUENCES, TOKENS, TRAINED

ENDS = (0.0, -1e-7, -1e4)
CLIPPED = [case for case in TOKENS if case.loss is losses.ppo_loss]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", SEQUENCES, ids=lambda case: case.name)
def test_preferences_are_finite(case, dtype):
    n = len(ENDS) ** 2
    for a, b in ((0, 1), (1, 0)):
        pairs = torch.cartesian_prod(torch.tensor(ENDS), torch.tensor(ENDS)).to(dtype)
        arguments = {}
        for i, name in enumerate(case.arguments):
            value = torch.arange(n) % 2 == 0 if name == "desirable" else pairs[:, (a, b)[i % 2]].clone()
            arguments[name] = -value if name == "nll" else value
        arguments = {name: value.requires_grad_() if name in TRAINED else value for name, value in arguments.items()}
        loss = case.call(arguments)
        assert loss.isfinite()
        loss.backward()
        assert all(value.grad.isfinite().all() for value in arguments.values() if value.requires_grad)


@pytest.mark.parametrize("case", CLIPPED, ids=lambda case: case.name)
def test_a_clipped_ratio_has_no_gradient_even_if_it_overflows(case):
    logprobs = torch.tensor([[0.0, -1e4, 0.0, -1e4]], requires_grad=True)
    old = torch.tensor([[-1e4, 0.0, 0.0, -1e4]])
    for advantage in (1.0, 0.0):
        loss = losses.grpo_loss(logprobs, old, torch.tensor([advantage]), torch.ones(1, 4), **bounds(case))
        assert loss.isfinite()
        (gradient,) = torch.autograd.grad(loss, logprobs)
        assert gradient.tolist() == [[0, 0, -advantage / 4, -advantage / 4]]


def bounds(case):
    return {name: value for name, value in case.given.items() if name != "reduction"}


def test_delta_bounds_the_ratio_of_a_bad_text():
    logprobs, old = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[-1e4, 0.0]])
    loss = losses.ppo_loss(logprobs, old, torch.tensor([-1.0]), torch.ones(1, 2), delta=3.0)
    loss.backward()
    assert loss.item() == pytest.approx(2.0)
    assert logprobs.grad.tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unlikelihood_is_accurate_at_both_ends(dtype):
    eps = torch.finfo(dtype).eps
    logprobs = torch.tensor([-1e4, -50.0, -20.0, -1.0, -1e-3, -1e-6, -4 * eps, 0.0], dtype=dtype).requires_grad_()
    loss = losses.unlikelihood_loss(logprobs, torch.ones(8), reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    for x, value, slope in zip(logprobs.tolist()[:-1], loss.tolist(), gradient.tolist(), strict=False):
        assert value == pytest.approx(-math.log(-math.expm1(x)) if x > -1 else -math.log1p(-math.exp(x)), rel=4 * eps)
        assert slope == pytest.approx(1 / math.expm1(-x) if x > -700 else 0.0, rel=8 * eps)
    assert loss[-1].item() == pytest.approx(-math.log(eps))  # p rounds to 1, and 1 - p to eps
    assert gradient[-1].item() == pytest.approx(1 / eps)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_loss_at_both_ends(gamma):
    logprobs = torch.tensor([0.0, -1e-3, -1e4], dtype=torch.float64, requires_grad=True)
    loss = losses.focal_loss(logprobs, torch.ones(3), gamma=gamma, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    p = math.exp(-1e-3)
    assert loss.tolist() == pytest.approx([0.0, 1e-3 * (1 - p) ** gamma, 1e4])
    middle = -((1 - p) ** gamma) - 1e-3 * gamma * p * (1 - p) ** (gamma - 1)
    assert gradient.tolist() == pytest.approx([-1.0 if gamma == 0 else 0.0, middle, -1.0], abs=1e-6)


def test_a_confident_model_can_be_made_less_likely():
    """Where log p rounds to 0, the gradient of the logits is neither 0 nor NaN."""
    logits = torch.tensor([[40.0, 20.0, 0.0]], requires_grad=True)
    logprobs = logits.log_softmax(-1)[:, :1]
    assert logprobs.item() == 0
    losses.unlikelihood_loss(logprobs, torch.ones(1, 1)).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] < 0  # the second token becomes likelier
