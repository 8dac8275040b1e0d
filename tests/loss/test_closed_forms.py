"""Values a person can work out, and the oracle and the package's reference held to them and to each other."""

import math

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import cross_entropy, linear_cross_entropy, reference, token_logprobs, token_stats
from tests.loss import oracle
from tests.loss.cases import KINDS, make_case, upstream_like

F64 = torch.float64
LOSSES = {"oracle": oracle.loss_of_logits, "op": cross_entropy}


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


def close(x, value):
    torch.testing.assert_close(x, torch.as_tensor(value, dtype=x.dtype), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("vocab_size", [1, 2, 7, 1000])
def test_a_uniform_guess_costs_ln_v(loss, vocab_size):
    logits = torch.full((4, vocab_size), 3.7, dtype=F64)
    close(loss(logits, torch.arange(4) % vocab_size), math.log(vocab_size))


def test_two_classes_are_the_logistic_loss(loss):
    gap = torch.linspace(-30, 30, 13, dtype=F64)
    logits = torch.stack([gap, torch.zeros_like(gap)], -1)
    close(loss(logits, torch.zeros(13, dtype=torch.long), reduction="none"), -F.logsigmoid(gap))


def test_the_logarithm_of_a_known_softmax_gives_minus_ln_p(loss):
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=F64)
    losses = loss(p.log().expand(4, 4) + 11, torch.arange(4), reduction="none")
    close(losses / math.log(2), [1.0, 2.0, 3.0, 3.0])


def test_a_dense_target_equal_to_the_model_costs_its_entropy(loss):
    p = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=F64)
    close(loss(p.log()[None], p[None]) / math.log(2), 1.75)


def test_duplicate_entries_of_a_sparse_target_add_up(loss):
    p = torch.tensor([0.5, 0.25, 0.25], dtype=F64)
    sparse = torch.tensor([[1, 0, 1]]), torch.tensor([[0.25, 0.5, 0.25]], dtype=F64)
    close(loss(p.log()[None], sparse) / math.log(2), 1.5)


def test_full_smoothing_is_the_mean_over_classes(loss):
    logits = torch.tensor([[0.0, math.log(3)]], dtype=F64)
    close(loss(logits, torch.tensor([0]), label_smoothing=1.0), (math.log(4) + math.log(4 / 3)) / 2)


def test_z_loss_of_a_uniform_guess(loss):
    logits = torch.zeros(1, 5, dtype=F64)
    close(loss(logits, torch.tensor([0]), z_loss=0.5), math.log(5) + 0.5 * math.log(5) ** 2)


def test_scale_then_softcap(loss):
    logits = torch.tensor([[2.0, -2.0]], dtype=F64)
    gap = 2 * 3 * math.tanh(0.5 * 2 / 3)
    close(loss(logits, torch.tensor([0]), scale=0.5, softcap=3.0), math.log1p(math.exp(-gap)))


def test_class_weights_weigh_the_mean_and_token_weights_too(loss):
    logits = torch.tensor([[0.0, math.log(3)]] * 2, dtype=F64)
    a, b = math.log(4), math.log(4 / 3)  # losses of class 0 and of class 1
    c = torch.tensor([2.0, 5.0], dtype=F64)
    tau = torch.tensor([0.5, 3.0], dtype=F64)
    target = torch.tensor([0, 1])
    close(loss(logits, target, class_weight=c), (2 * a + 5 * b) / 7)
    close(loss(logits, target, token_weight=tau), (0.5 * a + 3 * b) / 3.5)
    close(loss(logits, target, class_weight=c, token_weight=tau), (a + 15 * b) / 16)
    close(loss(logits, target, class_weight=c, token_weight=tau, normalizer=10), (a + 15 * b) / 10)
    close(loss(logits, target, class_weight=c, token_weight=tau, reduction="none"), [a, 15 * b])


def test_linear_head_of_a_worked_example(backend):
    hidden = torch.tensor([[1.0, 2.0]], dtype=F64)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]], dtype=F64)
    bias = torch.tensor([1.0, 0.0, 1.0], dtype=F64)  # logits 2, 2, 2
    target = torch.tensor([1])
    close(linear_cross_entropy(hidden, weight, target, bias=bias, backend=backend), math.log(3))
    close(token_logprobs(hidden, weight, target, bias=bias, backend=backend), [-math.log(3)])
    stats = token_stats(hidden, weight, target, bias=bias, topk=3, temperatures=[2.0], backend=backend)
    close(stats.entropy, [math.log(3)])
    close(stats.nll_at_temperature, [[math.log(3)]])
    close(stats.brier, [4 / 9 + 1 / 9 + 1 / 9])
    close(stats.margin, [0.0])
    assert stats.rank.tolist() == [1]


def reference_terms(case):
    """The reference's terms for flat indices, dense or sparse targets, from the oracle's distribution."""
    v, options = len(case.weight), case.options
    class_weight = options.get("class_weight")
    q = reference.smooth(oracle.distribution(case.target, v, F64), options.get("label_smoothing", 0.0), class_weight)
    hard = oracle.is_indices(case.target)
    k = class_weight[case.target] if hard and class_weight is not None else torch.ones(len(q), dtype=F64)
    return reference.Terms(q, k, *(options[name] for name in ("z_loss", "scale", "softcap")))


REFERENCE_OPTIONS = [
    {"z_loss": 0.0, "scale": 1.0, "softcap": None},
    {"z_loss": 0.1, "scale": 0.7, "softcap": 2.0, "label_smoothing": 0.2, "class_weight": True},
]


@pytest.mark.parametrize("options", REFERENCE_OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_equals_the_oracle(kind, options):
    case = make_case(kind=kind, ignore_index=0, **options)
    if kind == "indices":
        case = make_case(kind=kind, ignore_index=-1, **options)
        case.target.clamp_(min=0)
    logits = F.linear(case.hidden, case.weight).requires_grad_()
    truth, _ = oracle.token_losses(logits, case.target, **case.options)
    losses, lse = reference.forward(logits.detach(), reference_terms(case))
    torch.testing.assert_close(losses, truth.detach(), rtol=1e-13, atol=1e-13)
    z = oracle.capped(logits.detach(), options["scale"], options["softcap"])
    torch.testing.assert_close(lse, z.logsumexp(-1), rtol=1e-13, atol=1e-13)
    dloss = upstream_like(truth)
    (dlogits,) = torch.autograd.grad(truth, logits, dloss)
    ours = reference.backward(logits.detach(), reference_terms(case), dloss)
    torch.testing.assert_close(ours, dlogits, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", REFERENCE_OPTIONS)
def test_the_reference_by_its_target(options):
    case = make_case(kind="dense", **options)
    case.target[0] = torch.eye(7, dtype=F64)[2]  # a probability of 0 has a derivative too
    logits, target = F.linear(case.hidden, case.weight), case.target.clone().requires_grad_()
    truth, _ = oracle.token_losses(logits, target, **case.options)
    dloss = upstream_like(truth)
    ours = reference.backward_target(
        logits, reference_terms(case), dloss, options.get("label_smoothing", 0.0), case.options.get("class_weight")
    )
    torch.testing.assert_close(ours, torch.autograd.grad(truth, target, dloss)[0], rtol=1e-12, atol=1e-13)


class Reference(torch.autograd.Function):
    """The reference's forward with its hand-derived backward, so that gradcheck can compare the two."""

    @staticmethod
    def forward(ctx, logits, terms):
        ctx.save_for_backward(logits)
        ctx.terms = terms
        return reference.forward(logits, terms)[0]

    @staticmethod
    def backward(ctx, dloss):
        return reference.backward(*ctx.saved_tensors, ctx.terms, dloss), None


@pytest.mark.parametrize("options", REFERENCE_OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_backward_is_the_derivative_of_its_forward(kind, options):
    case = make_case(lead=(4,), d=3, v=5, kind=kind, ignore_index=-1, **options)
    if kind == "indices":
        case.target.clamp_(min=0)
    logits = F.linear(case.hidden, case.weight).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: Reference.apply(x, reference_terms(case)), logits.detach().requires_grad_()
    )
