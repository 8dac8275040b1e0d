"""What the estimators estimate: their means over all tokens of a small vocabulary, exactly."""

import pytest
import torch

from cynosure import losses

V = 7


@pytest.fixture
def heads():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, V, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), teacher.log_softmax(-1)


def expected(student, teacher, estimator):
    """The estimator's mean over tokens that the student samples, and the mean of its gradient."""
    logprobs = student.log_softmax(-1)
    probability = logprobs.detach().exp()
    every = torch.ones(V, dtype=torch.bool)
    loss = losses.on_policy_distillation_loss(logprobs, teacher, every, estimator=estimator, reduction="none")
    mean = (probability * loss).sum()
    return mean, torch.autograd.grad(mean, student)[0]


def divergence(p, q, student):
    kl = (p.exp() * (p - q)).sum()
    return kl, torch.autograd.grad(kl, student)[0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_mean_and_its_gradient(heads, estimator):
    student, teacher = heads
    value, gradient = expected(student, teacher, estimator)
    logprobs = student.log_softmax(-1)
    reverse, of_reverse = divergence(logprobs, teacher, student)
    _, of_forward = divergence(teacher, student.log_softmax(-1), student)
    torch.testing.assert_close(gradient, of_forward if estimator == "k3" else of_reverse)
    if estimator == "k2":
        assert (value - reverse).abs() > 1e-3
    else:
        torch.testing.assert_close(value, reverse)


def test_the_plain_difference_would_teach_nothing(heads):
    """Why "k1" has the policy gradient: the mean gradient of d itself is 0."""
    student, teacher = heads
    logprobs = student.log_softmax(-1)
    mean = (logprobs.detach().exp() * (logprobs - teacher)).sum()
    assert torch.autograd.grad(mean, student)[0].abs().max() < 1e-15


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gkd_is_the_divergence_of_its_beta(heads, beta):
    """Of hidden states that are the logits; the token of the second state does not count, and may hold NaN."""
    student, teacher = heads
    t, s = teacher.exp(), student.detach().softmax(-1)
    m = beta * t + (1 - beta) * s
    p, q = (t, s) if beta == 0 else (s, t) if beta == 1 else (t, m)
    expected = (p * (p / q).log()).sum()
    if 0 < beta < 1:
        expected = beta * expected + (1 - beta) * (s * (s / m).log()).sum()
    hidden = torch.stack([student.detach(), torch.full((V,), torch.nan)])
    head = torch.eye(V, dtype=torch.float64)
    loss = losses.gkd_loss(hidden, head, teacher.expand(2, V), head, torch.tensor([True, False]), beta=beta)
    torch.testing.assert_close(loss, expected)
