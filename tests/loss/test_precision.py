"""Rounding errors against float64, never more than twice those of torch in the same dtype: the three-way tolerance."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cynosure.loss import cross_entropy, linear_cross_entropy, token_logprobs, token_stats
from tests.loss import oracle
from tests.loss.cases import KINDS, REDUCTIONS, Case, assert_same, evaluate, make_case, upstream_like
from tests.loss.probes import assert_three_way, max_error, rms_error

ONE = torch.tensor(1.0)
HALF = [torch.bfloat16, torch.float16]
DTYPES = [torch.float64, torch.float32, *HALF]
# (V, N, D): the smallest there are, a middling one, GPT-2's and Gemma's
SHAPES = [(1, 9, 8), (2, 33, 8), (7, 33, 8), (1000, 32, 16), (50257, 11, 8), (262144, 7, 8)]


def compare(case, dtype, backend, upstream=None, errors=(max_error,), **how):
    """Ours and the plain two calls at one dtype, each against float64 on the same rounded inputs.

    Tensors are held to torch's error. A scalar loss is one number, in which torch may be lucky: it may be off by four
    roundings in float32, while the losses it sums are held to torch's error too.
    """
    case = case.to(dtype)
    truth = evaluate(oracle.loss, case.double(), upstream).named()
    theirs = evaluate(oracle.loss, case, upstream).named()
    ours = evaluate(linear_cross_entropy, case, upstream, backend=backend, **how).named()
    each = case.without("normalizer").using(reduction="none")
    truth["losses"], theirs["losses"] = each.double().call(oracle.loss), each.call(oracle.loss)
    ours["losses"] = each.call(linear_cross_entropy, backend=backend, **how)
    for name, x in ours.items():
        own = case.probability().dtype if name == "dprobability" else dtype
        assert x.dtype == (oracle.wide(dtype) if name.startswith("loss") else own), name
        y = truth[name]
        eps = torch.finfo(torch.float32).eps * y.abs().max().item() * (4 if x.dim() == 0 else 1)
        for error in errors:
            assert_three_way(x, theirs[name], y, eps=eps, name=name, error=error)


@pytest.mark.parametrize("std", [1.0, 30.0])
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("v", "n", "d"), SHAPES)
def test_realistic_scales(v, n, d, dtype, offset, std, backend):
    case = make_case(lead=(n,), d=d, v=v, std=std, bias=True)
    case.options["bias"] += offset
    compare(case, dtype, backend, ONE, errors=(max_error, rms_error))


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_everything_at_once(reduction, kind, dtype, backend):
    options = {"bias": True, "class_weight": True, "label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 30.0}
    case = make_case(lead=(4, 12), d=16, v=1000, std=8, kind=kind, reduction=reduction, shift=1, **options)
    compare(case, dtype, backend, errors=(rms_error,), chunk_tokens=10)


@pytest.mark.many_rows
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("std", [1.0, 30.0])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 512])
def test_dweight_of_many_chunks(chunk_tokens, std, dtype, backend):
    """A half-precision sum over 512 chunks would be off by far more than one product over all rows."""
    case = make_case(lead=(512,), d=32, v=200, std=std, bias=True, reduction="sum")
    compare(case, dtype, backend, errors=(max_error, rms_error), chunk_tokens=chunk_tokens)


def test_the_three_way_tolerance_catches_a_half_precision_sum():
    case = make_case(lead=(512,), d=32, v=200, reduction="sum").to(torch.bfloat16)
    truth, theirs = evaluate(oracle.loss, case.double()), evaluate(oracle.loss, case)
    parts = [
        evaluate(oracle.loss, Case(h, case.weight, t, case.options), torch.tensor(1.0)).grads["weight"]
        for h, t in zip(case.hidden.split(7), case.target.split(7), strict=True)
    ]
    factor = (truth.grads["weight"].norm() / sum(p.double() for p in parts).norm()).bfloat16()
    total = torch.zeros_like(parts[0])
    for part in parts:
        total += part * factor
    with pytest.raises(AssertionError):
        assert_three_way(total, theirs.grads["weight"], truth.grads["weight"], eps=0, error=rms_error)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("std", [1.0, 30.0])
@pytest.mark.parametrize("v", [2, 1000, 50257])
def test_given_logits_cost_no_more_than_rounding_once(v, std, offset, dtype, backend):
    """The logits are exact here: what is left is the loss's own arithmetic, which an offset must not disturb."""
    torch.manual_seed(0)
    logits = (torch.randn(11, v, dtype=torch.float64) * std + offset).to(dtype)
    target = torch.randint(v, (11,))

    def run(op, x):
        x = x.detach().clone().requires_grad_()
        loss = op(x, target)
        (dlogits,) = torch.autograd.grad(loss, x)
        return loss.detach(), dlogits

    def same_dtype(x, t):
        return F.cross_entropy(x.float(), t)

    truth, dtruth = run(F.cross_entropy, logits.double())
    theirs, dtheirs = run(same_dtype, logits)
    ours, dours = run(lambda x, t: cross_entropy(x, t, backend=backend), logits)
    eps = torch.finfo(torch.float32).eps
    assert_three_way(ours, theirs, truth, eps=eps * truth.abs().item(), name="loss")
    assert_three_way(dours, dtheirs, dtruth, eps=eps * dtruth.abs().max().item(), name="dlogits")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("std", [0.0, 1.0, 30.0, 300.0])
def test_nll_is_never_negative(std, offset, dtype, backend):
    """Sure and right, the loss is a hair above zero; rounding must not carry it below."""
    case = make_case(lead=(64,), d=16, v=300, std=std, bias=True, reduction="none")
    case.options["bias"] += offset
    case = case.to(dtype)
    case.target.copy_(F.linear(case.hidden, case.weight, case.options["bias"]).argmax(-1))
    losses = case.call(linear_cross_entropy, backend=backend, chunk_tokens=5)
    assert (losses >= 0).all()
    assert losses.isfinite().all()
    logprobs = case.without("reduction").call(token_logprobs, backend=backend)
    assert (logprobs <= 0).all()


HUGE = [(torch.float32, 3e9), (torch.bfloat16, 1e10), (torch.float64, 1e30)]
each_huge = pytest.mark.parametrize(("dtype", "size"), HUGE, ids=lambda x: str(x).removeprefix("torch."))
each_scale = pytest.mark.parametrize("scale", [0.3, 1 / 3, -1.5, 30.0])


def huge_logits(dtype, size, scale, n_rows=60, v=301):
    """Logits (N, V) whose unit in the last place is above 100 nats, and targets, half of them the likeliest."""
    torch.manual_seed(0)
    logits = (torch.randn(n_rows, v, dtype=torch.float64) * size).to(dtype)
    likeliest = (logits.to(oracle.wide(dtype)) * scale).argmax(-1)
    return logits, torch.where(torch.arange(n_rows) % 2 == 0, likeliest, torch.randint(v, (n_rows,)))


def assert_as_good(ours, theirs, truth, name):
    assert ours.isfinite().all(), name
    eps = 8 * torch.finfo(oracle.wide(ours.dtype)).eps * truth.abs().max().item()
    assert_three_way(ours, theirs, truth, eps=eps, name=name)


@each_huge
@each_scale
@pytest.mark.parametrize("options", [{}, {"softcap": True}, {"label_smoothing": 0.1}, {"z_loss": 1e-9}], ids=str)
def test_finite_logits_of_any_size_have_a_finite_loss(options, scale, dtype, size, backend):
    """What is subtracted from a scaled logit is one of them, rounded as it is: not its product before rounding."""
    logits, target = huge_logits(dtype, size, scale)
    options = {**options, "softcap": 20 * size * abs(scale)} if "softcap" in options else options

    def run(op, x, **how):
        x = x.detach().clone().requires_grad_()
        loss = op(x, target, reduction="none", scale=scale, **options, **how)
        (dlogits,) = torch.autograd.grad(loss.sum(), x)
        return {"loss": loss.detach(), "dlogits": dlogits}

    ours, theirs, truth = (
        run(cross_entropy, logits, backend=backend), run(oracle.loss_of_logits, logits),
        run(oracle.loss_of_logits, logits.double()),
    )  # fmt: skip
    ours["forward"], theirs["forward"], truth["forward"] = (
        cross_entropy(logits, target, reduction="none", scale=scale, backend=backend, **options),
        theirs["loss"], truth["loss"],
    )  # fmt: skip
    for name, x in ours.items():
        assert_as_good(x, theirs[name], truth[name], name)
    assert (ours["loss"] >= 0).all()


@each_huge
@each_scale
@pytest.mark.parametrize("softcap", [False, True])
def test_finite_logits_of_any_size_have_finite_statistics(softcap, scale, dtype, size, backend):
    logits, target = huge_logits(dtype, size, scale)
    hidden, weight = torch.eye(len(logits), dtype=dtype), logits.t().contiguous()  # whose matmul is exact
    options = {"scale": scale, "softcap": 20 * size * abs(scale) if softcap else None}
    more = {"topk": 3, "temperatures": [0.5, 1.5, 4.0]}
    ours = token_stats(hidden, weight, target, backend=backend, **options, **more)._asdict()
    theirs, truth = (oracle.stats(x, target, **options, **more) for x in (logits, logits.double()))
    ours["loss"] = linear_cross_entropy(hidden, weight, target, reduction="none", backend=backend, **options)
    theirs["loss"], truth["loss"] = theirs["nll"], truth["nll"]
    for name, x in ours.items():
        if x.is_floating_point():
            assert_as_good(x, theirs[name], truth[name], name)
    assert torch.equal(ours["rank"], theirs["rank"])  # the other ids are any of equals in bfloat16
    assert (ours["nll"] >= 0).all()


@pytest.mark.many_rows
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_small_upstream_gradients_in_float16_are_not_lost(reduction, backend):
    """1/N of each token is below float16's smallest number; the gradient, summed over tokens, is not."""
    case = make_case(lead=(2048,), d=8, v=50, std=3, reduction=reduction, ignored=0.0)
    case = case.using(normalizer=2.0**24) if reduction == "mean" else case
    case = case.to(torch.float16)
    upstream = torch.tensor(2.0**12 if reduction == "mean" else 2.0**-12)
    truth = evaluate(oracle.loss, case.double(), upstream)
    theirs = evaluate(oracle.loss, case, upstream)
    ours = evaluate(linear_cross_entropy, case, upstream, backend=backend)
    for name, x in ours.named().items():
        assert_three_way(x, theirs.named()[name], truth.named()[name], eps=0, name=name, error=rms_error)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", ["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_so_large_that_rows_are_taken_in_pieces(kind, options, dtype, backend):
    everything = {"bias": True, "class_weight": True, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0}
    case = make_case(lead=(13,), d=3, v=180_001, kind=kind, **(everything if options == "everything" else {}))
    if dtype == torch.float64:
        truth = evaluate(oracle.loss, case)
        assert_same(evaluate(linear_cross_entropy, case, backend=backend), truth)

        def on_logits(hidden, weight, target, *, bias=None, **rest):
            return cross_entropy(F.linear(hidden, weight, bias), target, **rest)

        assert_same(evaluate(on_logits, case, backend=backend), truth)
    else:
        compare(case, dtype, backend, errors=(rms_error,))


@settings(
    max_examples=100, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 12),
    v=st.integers(1, 60),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from(KINDS),
    reduction=st.sampled_from(REDUCTIONS),
    chunk_tokens=st.none() | st.integers(1, 50),
    std=st.sampled_from([0.5, 3.0, 10.0]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    z_loss=st.sampled_from([0.0, 0.01]),
    softcap=st.none() | st.sampled_from([2.0, 30.0]),
    scale=st.sampled_from([1.0, 0.3]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_and_dtype(
    n, d, v, dtype, kind, reduction, chunk_tokens, std, label_smoothing, z_loss, softcap, scale, bias, seed, backend
):
    """Few numbers, in which torch may be exact by luck: one rounding of the largest logit is allowed beside it."""
    case = make_case(
        lead=(n,), d=d, v=v, kind=kind, std=std, seed=seed, reduction=reduction, bias=bias,
        label_smoothing=label_smoothing, z_loss=z_loss, softcap=softcap, scale=scale,
    ).to(dtype)  # fmt: skip
    truth, theirs = evaluate(oracle.loss, case.double()), evaluate(oracle.loss, case)
    ours = evaluate(linear_cross_entropy, case, backend=backend, chunk_tokens=chunk_tokens)
    if dtype == torch.float64:
        assert_same(ours, truth)
        return
    logits = F.linear(case.hidden, case.weight, case.options.get("bias"))
    eps = torch.finfo(dtype).eps * (1 + logits.abs().max().item())
    # Of one token d(logits) is of the size of its upstream gradient, whatever then cancels.
    unit = upstream_like(ours.loss).abs().max().item() / (n if reduction == "mean" else 1)
    sizes = {"loss": 1.0, "dhidden": unit * case.weight.abs().max().item()}
    sizes |= {"dweight": unit * case.hidden.abs().max().item(), "dbias": unit, "dprobability": unit}
    for name, x in ours.named().items():
        y = truth.named()[name]
        size = max(sizes[name], y.abs().max().item())
        assert_three_way(x, theirs.named()[name], y, eps=eps * size, name=name)


def flat(v):
    """Logits that are all equal."""
    return torch.zeros(1, v)


def nearly_flat(v):
    """All equal but one: every other exponential is rounded alike."""
    return torch.zeros(1, v).index_fill(1, torch.tensor([0]), 0.1)


def scattered(v):
    return torch.randn(1, v, generator=torch.Generator(torch.get_default_device()).manual_seed(0)) * 30 + 1e4


@pytest.mark.parametrize("v", [151_936, 1_000_003])
@pytest.mark.parametrize("logits_of", [flat, nearly_flat, scattered])
@pytest.mark.parametrize("kind", ["smoothed", "only smoothed", "uniform"])
def test_equal_terms_do_not_drift(kind, logits_of, v, backend):
    """V equal terms, added up in float32, all round alike. The loss is off by five roundings at most, with gradients
    and without, and d(logits) add up to nothing."""
    logits, target = logits_of(v), torch.full((1, v), 1 / v) if kind == "uniform" else torch.tensor([5])
    options = {"label_smoothing": {"smoothed": 0.1, "only smoothed": 1.0, "uniform": 0.0}[kind], "backend": backend}
    wide = target.double() if kind == "uniform" else target
    truth = F.cross_entropy(logits.double(), wide, label_smoothing=options["label_smoothing"]).item()
    x = logits.clone().requires_grad_()
    loss = cross_entropy(x, target, **options)
    loss.backward()
    without = linear_cross_entropy(torch.ones(1, 1), logits.t().contiguous(), target, **options)
    assert abs(loss.item() / truth - 1) <= 5 * torch.finfo(torch.float32).eps
    assert abs(without.item() / truth - 1) <= 5 * torch.finfo(torch.float32).eps
    assert abs(x.grad.double().sum().item()) < 1e-6
