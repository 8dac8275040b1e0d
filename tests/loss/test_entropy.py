"""The entropy beside the log-probabilities, and its gradient, against full logits."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cynosure
from cynosure.loss import logits_token_logprobs, reference, reference_logprobs, token_logprobs, token_stats
from tests.loss import oracle
from tests.loss.cases import assert_same, evaluate, ids_case, joined, make_case, upstream_like
from tests.loss.interpreter import INTERPRETED
from tests.loss.probes import Gemms, assert_three_way, max_error, rms_error

pytestmark = pytest.mark.usefixtures("poison_empty")

F64, INF = torch.float64, math.inf
HALF = [torch.bfloat16, torch.float16]


truth_of = joined(oracle.logprobs_of_hidden)
OPTIONS = [{}, {"softcap": 2.0, "scale": 0.4, "temperature": 0.7}, {"temperature": 3.0, "ignore_index": 0}]


@pytest.mark.parametrize("chunk_tokens", [None, 4])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("make", [make_case, ids_case], ids=["class indices", "given ids"])
def test_every_option(make, options, shift, chunk_tokens, backend):
    case = make(lead=(2, 5), shift=shift, **options)
    ours = evaluate(joined(token_logprobs, backend=backend, chunk_tokens=chunk_tokens), case)
    assert_same(ours, evaluate(truth_of, case))


@pytest.mark.parametrize("make", [make_case, ids_case], ids=["class indices", "given ids"])
def test_given_logits(make, backend):
    case = make(lead=(2, 5), shift=1, bias=True, softcap=2.0, temperature=1.5)

    def on_logits(hidden, weight, target, *, bias, **options):
        return joined(logits_token_logprobs, backend=backend)(F.linear(hidden, weight, bias), target, **options)

    assert_same(evaluate(on_logits, case), evaluate(truth_of, case))


def test_the_result_is_a_named_pair(backend):
    case = make_case()
    pair = case.call(token_logprobs, entropy=True, backend=backend)
    assert isinstance(pair, cynosure.TokenLogprobs)
    torch.testing.assert_close(pair.logprobs, case.call(token_logprobs, backend=backend), rtol=1e-14, atol=1e-14)
    entropy = case.call(token_stats, backend=backend).entropy
    torch.testing.assert_close(pair.entropy, entropy.nan_to_num(0.0), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("v", [1, 2, 1000])
def test_a_uniform_distribution(v, backend):
    """H = ln V is the largest there is: its gradient is 0."""
    logits = torch.full((3, v), 3.7, dtype=F64, requires_grad=True)
    entropy = logits_token_logprobs(logits, torch.zeros(3).long(), entropy=True, backend=backend).entropy
    torch.testing.assert_close(entropy, torch.full((3,), math.log(v), dtype=F64), rtol=1e-14, atol=1e-14)
    (dlogits,) = torch.autograd.grad(entropy.sum(), logits)
    assert dlogits.abs().max() <= 1e-15


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("gap", [800.0, INF])
def test_a_certain_distribution(gap, dtype, backend):
    """H = 0 with a gradient of 0, also where the other classes are impossible."""
    logits = torch.full((2, 40), -gap, dtype=dtype)
    logits[:, 3] = 5.0
    for target in (torch.tensor([3, 4]), torch.tensor([[3, 5], [4, 3]])):
        x = logits.clone().requires_grad_()
        entropy = logits_token_logprobs(x, target, entropy=True, backend=backend).entropy
        assert (entropy == 0).all()
        assert (torch.autograd.grad(entropy.sum(), x)[0] == 0).all()


def test_impossible_classes_add_nothing(backend):
    case = ids_case(v=9)
    case.target[case.target == 4] = 0
    case.options["bias"][4] = -INF
    ours = evaluate(joined(token_logprobs, backend=backend), case)
    keep = torch.arange(9) != 4
    ids = torch.where(case.target > 4, case.target - 1, case.target)
    fewer = replace(case, weight=case.weight[keep], target=ids, options={"bias": case.options["bias"][keep]})
    truth = evaluate(truth_of, fewer)
    assert all((ours.grads[name][4] == 0).all() for name in ("weight", "bias"))
    ours.grads.update(weight=ours.grads["weight"][keep], bias=ours.grads["bias"][keep])
    assert_same(ours, truth)


def test_ignored_rows(backend):
    case = ids_case()
    hidden = case.hidden.clone()
    hidden[1] = math.nan
    ours = evaluate(joined(token_logprobs, backend=backend), replace(case, hidden=hidden))
    assert_same(ours, evaluate(truth_of, case))
    assert (ours.loss[1] == 0).all()
    assert (ours.grads["hidden"][1] == 0).all()


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_both_gradients(which, backend):
    case = ids_case(lead=(2, 5), softcap=2.0)
    ours = evaluate(lambda *args, **o: token_logprobs(*args, **o, entropy=True, backend=backend)[which], case)
    assert_same(ours, evaluate(lambda *args, **o: oracle.logprobs_of_hidden(*args, **o)[which], case))


def test_a_second_backward_adds_up(backend):
    case = ids_case(lead=(2, 5))
    leaves = {name: x.requires_grad_() for name, x in case.leaves().items()}
    both = joined(token_logprobs, backend=backend)
    out = case.with_leaves(leaves).call(both)
    upstream = upstream_like(out)
    out.backward(upstream, retain_graph=True)
    once = {name: x.grad.clone() for name, x in leaves.items()}
    out.backward(2 * upstream)
    for name, x in leaves.items():
        torch.testing.assert_close(x.grad, 3 * once[name], rtol=1e-13, atol=1e-13)


@pytest.mark.cpu_only
@pytest.mark.parametrize(("wanted", "n_gemms"), [(False, 1), (True, 4)])
def test_matmuls(wanted, n_gemms, backend):
    case = make_case(lead=(8,), ignored=0.0)
    with Gemms() as gemms:
        if wanted:
            evaluate(joined(token_logprobs, backend=backend), case)
        else:
            case.call(token_logprobs, entropy=True, backend=backend)
    assert gemms.count(8, 5, 7) == n_gemms


@pytest.mark.parametrize("frozen", [("hidden",), ("weight", "bias")])
def test_gradients_only_where_asked(frozen, backend):
    case = ids_case().freeze(*frozen)
    assert_same(evaluate(joined(token_logprobs, backend=backend), case), evaluate(truth_of, case))


@pytest.mark.parametrize("options", [{}, {"softcap": 2.5, "scale": 0.8, "temperature": 1.3, "shift": 1}], ids=str)
@pytest.mark.parametrize("make", [make_case, ids_case], ids=["class indices", "given ids"])
@pytest.mark.many_rows
def test_gradcheck(make, options, backend):
    case = make(lead=(2, 3), d=2, v=4, bias=True, **options)
    leaves = case.leaves()

    def both(*tensors):
        changed = case.with_leaves(dict(zip(leaves, tensors, strict=True)))
        return tuple(changed.call(token_logprobs, entropy=True, backend=backend, chunk_tokens=3))

    assert torch.autograd.gradcheck(both, [x.detach().clone().requires_grad_() for x in leaves.values()])


@pytest.mark.cpu_only
@pytest.mark.parametrize("options", [(1.0, 1.0, None), (0.7, 1.3, 2.0)])
def test_the_reference(options):
    temperature, scale, softcap = options
    torch.manual_seed(0)
    logits = torch.randn(6, 5, dtype=F64, requires_grad=True)
    ids = torch.randint(5, (6, 3))
    terms = reference.Terms(torch.empty(0), torch.empty(0), scale=scale, softcap=softcap)
    ours = reference_logprobs.forward(logits, ids, terms, temperature)
    how = {"temperature": temperature, "scale": scale, "softcap": softcap}
    truth = oracle.logprobs_and_entropy(logits, ids, **how)
    upstream = [upstream_like(x, seed) for seed, x in enumerate(truth)]
    for x, y in zip(ours, truth, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)
    (dlogits,) = torch.autograd.grad(truth, logits, upstream)
    by_hand = reference_logprobs.backward(logits.detach(), ids, terms, *upstream, temperature)
    torch.testing.assert_close(by_hand, dlogits, rtol=1e-12, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x: tuple(reference_logprobs.forward(x, ids, terms, temperature)), logits)


def compare(case, dtype, backend, error, **how):
    """Ours and torch's at one dtype, each against float64 on the same rounded inputs; each result by itself."""
    case = case.to(dtype)
    n_ids = case.target.shape[-1]
    results = [evaluate(op, c) for op, c in ((truth_of, case.double()), (truth_of, case))]
    results.append(evaluate(joined(token_logprobs, backend=backend, **how), case))
    truth, theirs, ours = ({"logprobs": r.loss[..., :n_ids], "entropy": r.loss[..., n_ids], **r.grads} for r in results)
    for name, x in ours.items():
        eps = torch.finfo(torch.float32).eps * truth[name].abs().max().item()
        assert_three_way(x, theirs[name], truth[name], eps=eps, name=name, error=error)


@pytest.mark.parametrize("std", [1.0, 30.0])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("error", [max_error, rms_error], ids=["max", "rms"])
def test_rounding(error, dtype, offset, std, backend):
    if dtype == torch.float16 and std * offset == 3e5:
        std = 3.0
    case = ids_case(k=4, lead=(33,), d=8, v=1000, std=std)
    case.options["bias"] += offset
    compare(case, dtype, backend, error, chunk_tokens=10 if error is rms_error else None)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 20), d=st.integers(1, 9), v=st.integers(1, 70), k=st.integers(1, 5),
    chunk_tokens=st.none() | st.integers(1, 20), std=st.sampled_from([0.5, 3.0, 30.0]),
    softcap=st.none() | st.just(5.0), temperature=st.sampled_from([1.0, 0.3, 7.0]), seed=st.integers(0, 99),
)  # fmt: skip
@pytest.mark.skipif(INTERPRETED, reason="twenty cases take minutes in the interpreter")
def test_any_shape(n, d, v, k, chunk_tokens, std, softcap, temperature, seed, backend):
    case = ids_case(k, lead=(n,), d=d, v=v, std=std, seed=seed, softcap=softcap, temperature=temperature)
    ours = evaluate(joined(token_logprobs, backend=backend, chunk_tokens=chunk_tokens), case)
    assert_same(ours, evaluate(truth_of, case), 1e-11)


def test_a_vocabulary_in_pieces(backend):
    case = ids_case(k=5, lead=(13,), d=3, v=180_001)
    assert_same(evaluate(joined(token_logprobs, backend=backend), case), evaluate(truth_of, case), 1e-11)


@pytest.mark.parametrize("logit", [20.0, 30.0])
def test_a_target_that_is_nearly_certain(logit, backend):
    """1 - p is below the rounding of float32; the gradient by the logits keeps it."""
    logits = torch.zeros(1, 3000)
    logits[0, 7] = logit
    truth = logits.double().requires_grad_()
    x = logits.clone().requires_grad_()
    for op, at, how in ((oracle.logprobs_and_entropy, truth, {}), (logits_token_logprobs, x, {"backend": backend})):
        logprobs, entropy = op(at, torch.tensor([7]), entropy=True, **how)
        (logprobs.sum() + 0.3 * entropy.sum()).backward()
    others = torch.arange(3000) != 7
    torch.testing.assert_close(x.grad.double()[:, others], truth.grad[:, others], rtol=1e-5, atol=0)


@pytest.mark.cpu_only
@pytest.mark.parametrize("make", [make_case, ids_case], ids=["class indices", "given ids"])
def test_sampled_gradients_are_unbiased(make):
    """The mean of draws comes as close as so many draws may; each is within the tolerance, give or take."""
    case = make(lead=(24,), d=6, v=300, std=3.0, bias=True, dtype=torch.float32)
    case = replace(case, hidden=case.hidden + 0.5)
    exact = evaluate(joined(token_logprobs), case)
    generator = torch.Generator().manual_seed(0)
    draws = [
        evaluate(joined(token_logprobs), case, grad_tolerance=0.2, generator=generator) for _ in range(100)
    ]  # fmt: skip
    for name in ("hidden", "weight"):
        truth = exact.grads[name]
        errors = torch.stack([d.grads[name] for d in draws]) - truth
        size = errors.square().sum((1, 2)).mean().sqrt() / truth.norm()
        assert 0.01 < size < 0.3, name
        assert errors.mean(0).norm() / truth.norm() < 3 * size / 10, name
    assert all(torch.equal(d.loss, exact.loss) for d in draws)
    assert all(torch.equal(d.grads["bias"], exact.grads["bias"]) for d in draws)


def test_second_derivatives_are_refused(backend):
    case = ids_case()
    hidden = case.hidden.requires_grad_()
    logprobs, entropy = case.call(token_logprobs, entropy=True, backend=backend)
    (dhidden,) = torch.autograd.grad(entropy.sum(), hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dhidden.sum().backward()
    assert logprobs.requires_grad
