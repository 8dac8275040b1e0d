"""Log-probabilities of several given ids of each token, against log_softmax of full logits."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import linear_cross_entropy, logits_token_logprobs, token_logprobs, token_stats
from tests.loss import oracle
from tests.loss.cases import LEAVES, assert_same, evaluate, ids_case, make_case
from tests.loss.probes import Allocations, Gemms, assert_three_way, max_error, rms_error

pytestmark = pytest.mark.usefixtures("poison_empty")

F64, INF = torch.float64, math.inf
HALF = [torch.bfloat16, torch.float16]
truth_of = partial(oracle.logprobs_of_hidden, entropy=False)


@pytest.mark.parametrize("chunk_tokens", [None, 1, 4])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 2.0, "scale": 0.4, "temperature": 0.7}, {"temperature": 3.0, "ignore_index": 0}],
    ids=str,
)
def test_every_option(options, shift, chunk_tokens, backend):
    case = ids_case(lead=(2, 5), shift=shift, **options)
    ours = evaluate(token_logprobs, case, backend=backend, chunk_tokens=chunk_tokens)
    assert_same(ours, evaluate(truth_of, case))
    assert ours.loss.shape == (2, 5 - shift, 3)


@pytest.mark.parametrize("lead", [(), (1,), (9,), (2, 2, 4), (0,), (3, 0)])
@pytest.mark.parametrize("k", [1, 10])
def test_any_shape(k, lead, backend):
    """More ids than classes too."""
    case = ids_case(k, lead=lead, v=7, ignored=0.0)
    ours = evaluate(token_logprobs, case, backend=backend)
    assert_same(ours, evaluate(truth_of, case))
    assert ours.loss.shape == (*lead, k)


@pytest.mark.parametrize("v", [1, 2, 7])
def test_of_all_classes_the_probabilities_add_up_to_one(v, backend):
    case = make_case(v=v, ignored=0.0)
    logprobs = token_logprobs(case.hidden, case.weight, torch.arange(v).expand(9, v), backend=backend)
    torch.testing.assert_close(logprobs.exp().sum(-1), torch.ones(9, dtype=F64), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, F64])
def test_one_id_is_the_target(dtype, backend):
    case = make_case(lead=(4, 9), bias=True, softcap=3.0, shift=1).to(dtype)
    alone = evaluate(token_logprobs, case, backend=backend, chunk_tokens=5)
    first = lambda *args, **options: token_logprobs(*args, **options)[..., 0]  # noqa: E731
    given = evaluate(first, replace(case, target=case.target[..., None]), backend=backend, chunk_tokens=5)
    assert_same(given, alone, 4 * torch.finfo(oracle.wide(dtype)).eps if dtype.itemsize > 2 else 2**-7)
    assert given.loss.dtype == oracle.wide(dtype)


def test_temperatures_are_those_of_the_statistics(backend):
    case = make_case(lead=(2, 5), bias=True, softcap=2.0, ignored=0.0)
    stats = case.call(token_stats, temperatures=[0.5, 4.0], backend=backend)
    for i, temperature in enumerate([0.5, 4.0]):
        ours = case.call(token_logprobs, temperature=temperature, backend=backend)
        torch.testing.assert_close(ours, -stats.nll_at_temperature[..., i], rtol=1e-12, atol=1e-12)


def test_nan_in_ignored_rows_reaches_nothing(backend):
    case = ids_case()
    truth = evaluate(truth_of, case)
    hidden = case.hidden.clone()
    hidden[(case.target == -100).all(-1)] = math.nan
    ours = evaluate(token_logprobs, replace(case, hidden=hidden), backend=backend)
    assert_same(ours, truth)
    assert (ours.grads["hidden"][1] == 0).all()


@pytest.mark.cpu_only
def test_ignored_rows_cost_no_matmul(backend):
    case = ids_case(lead=(8,))
    case.target[4:] = -100
    n_counted = int((case.target != -100).any(-1).sum())
    for entropy in (False, True):
        with Gemms() as gemms:
            result = case.with_leaves({x: y.requires_grad_() for x, y in case.leaves().items()}).call(
                token_logprobs, backend=backend, entropy=entropy
            )
            forward = gemms.flops
            sum(x.sum() for x in (result if entropy else [result])).backward()
        one = 2 * n_counted * case.weight.numel()
        assert (forward, gemms.flops) == (one, 4 * one)


def test_all_ignored(backend):
    case = replace(ids_case(), target=torch.full((9, 3), -100))
    ours = evaluate(token_logprobs, case, backend=backend)
    assert (ours.loss == 0).all()
    assert all((x == 0).all() for x in ours.grads.values())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_ids_of_any_integer_dtype(dtype, backend):
    case = ids_case(ignored=0.0 if dtype == torch.uint8 else 0.3)
    narrow = replace(case, target=case.target.to(dtype))
    assert_same(evaluate(token_logprobs, narrow, backend=backend), evaluate(truth_of, case))


def test_strided_and_expanded_ids(backend):
    case = ids_case(lead=(4, 6), ignored=0.0)
    for ids in (case.target.mT.contiguous().mT, case.target.flip(0), case.target[:1, :1].expand(4, 6, 3)):
        changed = replace(case, target=ids)
        assert_same(evaluate(token_logprobs, changed, backend=backend), evaluate(truth_of, changed))


def test_an_impossible_id(backend):
    case = ids_case(ignored=0.0)
    case.options["bias"][2] = -INF
    case.target[3, 1], case.target[:3], case.target[4:] = 2, 1, 0
    ours = evaluate(token_logprobs, case, torch.where(case.target == 2, 0.0, 1.3), backend=backend)
    assert ours.loss[3, 1] == -INF
    assert (ours.loss == -INF).sum() == 1
    truth = evaluate(truth_of, case, torch.where(case.target == 2, 0.0, 1.3))
    for name in LEAVES[:3]:
        finite = truth.grads[name].isfinite()
        torch.testing.assert_close(ours.grads[name][finite], truth.grads[name][finite], rtol=1e-12, atol=1e-12)
        assert ours.grads[name].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, INF])
def test_a_row_that_is_not_finite_is_nan(value, backend):
    case = ids_case(ignored=0.0)
    logits = (case.hidden @ case.weight.T).requires_grad_()
    with torch.no_grad():
        logits[2, 3] = value
    logprobs, entropy = logits_token_logprobs(logits, case.target, entropy=True, backend=backend)
    (dlogits,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), logits)
    for x in (logprobs, entropy, dlogits):
        assert x[2].isnan().all()
        assert x[torch.arange(9) != 2].isfinite().all()


def compare(case, dtype, backend, error, op=token_logprobs, truth_op=truth_of, **how):
    """Ours and torch's at one dtype, each against float64 on the same rounded inputs."""
    case = case.to(dtype)
    truth, theirs = evaluate(truth_op, case.double()).named(), evaluate(truth_op, case).named()
    for name, x in evaluate(op, case, backend=backend, **how).named().items():
        eps = torch.finfo(torch.float32).eps * truth[name].abs().max().item()
        assert_three_way(x, theirs[name], truth[name], eps=eps, name=name, error=error)


@pytest.mark.parametrize(("std", "offset"), [(1.0, 0.0), (30.0, 1e4)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("error", [max_error, rms_error], ids=["max", "rms"])
def test_rounding(error, dtype, offset, std, backend):
    if dtype == torch.float16 and std * offset == 3e5:
        std = 3.0  # d(logits) of float16 logits near 1e4, 8 apart
    case = ids_case(k=4, lead=(33,), d=8, v=1000, std=std)
    case.options["bias"] += offset
    compare(case, dtype, backend, error, chunk_tokens=10 if error is rms_error else None)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF, F64])
@pytest.mark.parametrize("softcap", [None, 40.0])
def test_no_probability_is_above_one(softcap, dtype, backend):
    """Sure and right, log p is a hair below zero; rounding must not carry it above."""
    case = make_case(lead=(64,), d=16, v=300, std=100.0, bias=True).to(dtype)
    logits = F.linear(case.hidden, case.weight, case.options["bias"])
    logprobs = replace(case, target=logits.topk(3).indices).call(token_logprobs, softcap=softcap, backend=backend)
    assert (logprobs <= 0).all()


def test_a_vocabulary_in_pieces(backend):
    case = ids_case(k=5, lead=(13,), d=3, v=180_001)
    truth = evaluate(truth_of, case)
    assert_same(evaluate(token_logprobs, case, backend=backend), truth)
    on_logits = lambda h, w, t, bias: logits_token_logprobs(F.linear(h, w, bias), t, backend=backend)  # noqa: E731
    assert_same(evaluate(on_logits, case), truth)


@pytest.mark.many_rows
def test_small_upstream_gradients_in_float16_are_not_lost(backend):
    case = ids_case(lead=(512,), d=8, v=50, std=3.0).to(torch.float16)
    upstream = torch.full((512, 3), 2.0**-24)
    truth, theirs = evaluate(truth_of, case.double(), upstream), evaluate(truth_of, case, upstream)
    ours = evaluate(token_logprobs, case, upstream, backend=backend)
    for name, x in ours.named().items():
        assert_three_way(x, theirs.named()[name], truth.named()[name], eps=0, name=name, error=rms_error)
    assert ours.grads["weight"].abs().max() > 0


@pytest.mark.cpu_only
@pytest.mark.many_rows
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("entropy", [False, True])
def test_no_full_logits(entropy, dtype, backend):
    n, d, v, k, chunk = 120, 2, 2100, 3, 4
    case = ids_case(k, lead=(2, n // 2), d=d, v=v, softcap=3.0, shift=1).to(dtype)
    leaves = {name: x.requires_grad_() for name, x in case.leaves().items()}
    case = case.with_leaves(leaves)
    with Allocations(case.hidden, case.weight, case.target, list(case.options.values())) as made:
        result = case.call(token_logprobs, entropy=entropy, backend=backend, chunk_tokens=chunk)
        total = sum(x.sum() for x in (result if entropy else [result]))
        for _ in range(2):
            torch.autograd.grad(total, list(leaves.values()), retain_graph=True)
    assert made.largest <= max(chunk * v, v * d, n * d, n * (k + 1))


@pytest.mark.parametrize("weighed", [False, True])
def test_known_weights_take_three_matmuls(weighed, backend):
    """A weighed sum of log-probabilities, as with advantages, is a loss whose token weights have any sign."""
    case = make_case(lead=(8,), bias=True, softcap=2.0, ignored=0.0)
    weights = torch.randn(8, dtype=F64)

    def loss(*args, **options):
        if weighed:
            return -linear_cross_entropy(*args, **options, reduction="sum", token_weight=weights, backend=backend)
        return (token_logprobs(*args, **options, backend=backend) * weights).sum()

    truth = evaluate(lambda *args, **o: (oracle.logprobs_of_hidden(*args, **o, entropy=False) * weights).sum(), case)
    with Gemms() as gemms:
        assert_same(evaluate(loss, case), truth)
    assert gemms.count(8, 5, 7) == (3 if weighed else 4)


BAD = {
    "an id outside": ({"target": torch.full((2, 4, 3), 1).index_fill(2, torch.tensor([2]), 7)},
                      IndexError, r"^target\[0, 0, 2\] is 7, but it must be in \[0, 7\)"),
    "a negative id": ({"target": torch.full((2, 4, 3), -3)}, IndexError, r"^target\[0, 0, 0\] is -3"),
    "another batch": ({"target": torch.zeros(2, 5, 3).long()}, ValueError,
                      r"^target \(given ids\) must have shape \(2, 4, K\) with K >= 1, got \(2, 5, 3\)$"),
    "no ids": ({"target": torch.zeros(2, 4, 0).long()}, ValueError, r"K >= 1, got \(2, 4, 0\)$"),
    "one dimension too many": ({"target": torch.zeros(2, 4, 3, 1).long()}, ValueError, r"shape \(2, 4\), got"),
    "probabilities": ({"target": torch.rand(2, 4, 7)}, TypeError, "^target must be class indices"),
    "booleans": ({"target": torch.ones(2, 4, 3).bool()}, TypeError, "^target .* must be integers"),
    "no temperature": ({"temperature": 0.0}, ValueError, "^temperature must be positive and finite, got 0.0$"),
    "below zero": ({"temperature": -1.0}, ValueError, "^temperature must be positive and finite, got -1.0$"),
    "infinite": ({"temperature": INF}, ValueError, "^temperature must be positive and finite, got inf$"),
    "not a number": ({"temperature": math.nan}, ValueError, "^temperature must be positive and finite, got nan$"),
    "no number": ({"temperature": "hot"}, TypeError, "^temperature must be a number positive and finite, got 'hot'$"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.cpu_only
def test_bad_input(entropy, name):
    change, error, message = BAD[name]
    case = ids_case(lead=(2, 4), ignored=0.0)
    options = {"target": case.target, "entropy": entropy, **change}
    with pytest.raises(error, match=message):
        token_logprobs(case.hidden, case.weight, **options)
    with pytest.raises(error, match=message):
        logits_token_logprobs(case.hidden @ case.weight.T, **options)


@pytest.mark.cpu_only
def test_tensors_without_values():
    case = ids_case(lead=(2, 5))
    for entropy in (False, True):
        hidden = case.hidden.to("meta").requires_grad_()
        inputs = hidden, case.weight.to("meta"), case.target.to("meta")
        result = token_logprobs(*inputs, shift=1, entropy=entropy)
        logprobs = result.logprobs if entropy else result
        assert (logprobs.shape, logprobs.device.type, logprobs.dtype) == ((2, 4, 3), "meta", F64)
        assert not entropy or result.entropy.shape == (2, 4)
        assert torch.autograd.grad(logprobs.sum(), hidden)[0].shape == hidden.shape


def test_given_logits(backend):
    case = ids_case(lead=(2, 5), shift=1, softcap=2.0, temperature=1.5)

    def on_logits(hidden, weight, target, *, bias, **options):
        return logits_token_logprobs(F.linear(hidden, weight, bias), target, **options, backend=backend)

    assert_same(evaluate(on_logits, case), evaluate(truth_of, case))


def test_autocast(backend):
    case = ids_case().to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = case.call(token_logprobs, backend=backend)
    torch.testing.assert_close(ours, case.to(torch.bfloat16).call(token_logprobs, backend=backend))
