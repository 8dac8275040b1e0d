"""Log-probabilities of chosen tokens, against log_softmax of full logits, and the losses people build on them."""

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import linear_cross_entropy, token_logprobs
from tests.loss import oracle
from tests.loss.cases import Case, assert_same, evaluate, make_case
from tests.loss.probes import Gemms

pytestmark = pytest.mark.usefixtures("poison_empty")


@pytest.mark.parametrize("lead", [(), (1,), (9,), (2, 5), (2, 2, 4), (0,), (3, 0)])
def test_equal_to_log_softmax(lead, backend):
    case = make_case(lead=lead, bias=True, ignored=0.0)
    logits = F.linear(case.hidden, case.weight, case.options["bias"])
    truth = logits.log_softmax(-1).gather(-1, case.target[..., None])[..., 0]
    ours = case.call(token_logprobs, backend=backend)
    assert ours.shape == lead
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 4])
@pytest.mark.parametrize("ignore_index", [-100, -1, 0])
def test_every_option(ignore_index, chunk_tokens, shift, scale, softcap, backend):
    case = make_case(lead=(2, 5), bias=True, softcap=softcap, scale=scale, shift=shift, ignore_index=ignore_index)
    ours = evaluate(token_logprobs, case, backend=backend, chunk_tokens=chunk_tokens)
    assert_same(ours, evaluate(oracle.logprobs, case))


def test_ignored_rows_are_zero_and_have_no_gradient(backend):
    case = make_case()
    ignored = case.target == -100
    assert ignored.any()
    ours = evaluate(token_logprobs, case, backend=backend)
    assert (ours.loss[ignored] == 0).all()
    assert (ours.grads["hidden"][ignored] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes(dtype, backend):
    case = make_case(bias=True).to(dtype)
    ours = evaluate(token_logprobs, case, backend=backend)
    assert ours.loss.dtype == oracle.wide(dtype)
    assert all(grad.dtype == dtype for grad in ours.grads.values())


@pytest.mark.parametrize(("wanted", "products"), [(False, 1), (True, 4)])
def test_matrix_products(wanted, products, backend):
    case = make_case(lead=(8,), ignored=0.0)
    with Gemms() as gemms:
        if wanted:
            evaluate(token_logprobs, case, backend=backend)
        else:
            case.call(token_logprobs, backend=backend)
    assert gemms.count(8, 5, 7) == products


def test_a_preference_loss(backend):
    """DPO: the difference of two sequence log-probabilities through a sigmoid, each with a gradient of its own."""
    case = make_case(lead=(2, 6), shift=1)

    def dpo(logprobs, **how):
        def loss(hidden, weight, target, **options):
            chosen, rejected = logprobs(hidden, weight, target, **options, **how).sum(-1)
            return -F.logsigmoid(0.1 * (chosen - rejected))

        return loss

    assert_same(evaluate(dpo(token_logprobs, backend=backend), case), evaluate(dpo(oracle.logprobs), case))


def test_importance_ratios(backend):
    """GRPO: exp(new - old) per token, in which every token's upstream gradient differs."""
    case = make_case(lead=(3, 5))
    old = torch.randn(3, 5, dtype=torch.float64)

    def ratio(logprobs, **how):
        return lambda *args, **options: ((logprobs(*args, **options, **how) - old).exp() * old).mean()

    assert_same(evaluate(ratio(token_logprobs, backend=backend), case), evaluate(ratio(oracle.logprobs), case))


def test_it_is_minus_the_loss(backend):
    case = make_case(lead=(2, 5), softcap=2.0)
    loss = case.call(linear_cross_entropy, reduction="none", backend=backend)
    assert torch.equal(case.call(token_logprobs, backend=backend), -loss)


def test_nan_in_ignored_rows(backend):
    case = make_case()
    truth = evaluate(oracle.logprobs, case)
    hidden = case.hidden.clone()
    hidden[case.target == -100] = float("nan")
    assert_same(evaluate(token_logprobs, Case(hidden, case.weight, case.target), backend=backend), truth)
