"""Sampled calls of sizes and values that nobody wants: no crash, and nothing that the exact path does not give."""

import math
from dataclasses import replace

import pytest
import torch

from cynosure.loss import linear_cross_entropy, record_sampling
from tests.loss.cases import KINDS, REDUCTIONS, evaluate, make_case
from tests.loss.sampled import sampled_case
from tests.loss.subclasses import LinearAlone, Opened, Parted

pytestmark = [pytest.mark.cpu_only, pytest.mark.usefixtures("poison_empty")]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCES = [1e-6, 0.1, 0.9]


def compare(case, tolerance=0.2, upstream=None, most=math.inf):
    """Sampled and exact gradients: finite where the exact ones are, of their shapes and dtypes, and not far away."""
    exact = evaluate(linear_cross_entropy, case, upstream)
    with record_sampling() as records:
        ours = evaluate(
            linear_cross_entropy, case.using(grad_tolerance=tolerance), upstream, generator=torch.Generator()
        )
    for (name, x), y in zip(ours.named().items(), exact.named().values(), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        assert bool((x.isfinite() | ~y.isfinite()).all()), name
        if bool(y.isfinite().all()) and name in ("dhidden", "dweight"):
            error, norm = float((x.double() - y.double()).norm()), float(y.double().norm())
            rounding = 4 * torch.finfo(x.dtype).eps
            assert error <= min(most, 8 * tolerance + rounding) * norm, f"{name}: {error:.2e} of {norm:.2e}"
    return ours, exact, records


def assert_whole(case, **more):
    """The exact path was taken: not a column was left out, and not a bit differs but for the order of sums."""
    ours, exact, records = compare(case, **more)
    assert all(record.columns_kept == 1 for record in records)
    for (name, x), y in zip(ours.named().items(), exact.named().values(), strict=True):
        eps = 4 * torch.finfo(x.dtype).eps
        torch.testing.assert_close(
            x,
            y,
            rtol=eps,
            atol=eps * float(y.double().nan_to_num(0, 0, 0).abs().max()),
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "v", "d"), [(1, 1, 1), (1, 2, 3), (3, 2, 1), (1, 257, 5), (2, 19, 1), (40, 3, 7)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_small_sizes(dtype, n, v, d, kind, reduction, tolerance, backend):
    case = sampled_case(dtype, lead=(n,), v=v, d=d, kind=kind, reduction=reduction, bias=True, backend=backend)
    compare(case, tolerance)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_counts(dtype, reduction):
    case = sampled_case(dtype, reduction=reduction, ignored=2.0)
    ours, _, records = compare(case)
    assert all(not x.any() for x in ours.grads.values())
    assert records == []
    compare(sampled_case(dtype, reduction=reduction, lead=(0,)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("upstream", [0.0, 1e-20, 1e20, -1e-30])
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_any_size_of_upstream_gradient(dtype, upstream, reduction):
    case = sampled_case(dtype, reduction=reduction, chunk_tokens=11)
    shape = (24,) if reduction == "none" else ()
    ours = compare(case, 0.3, torch.full(shape, upstream))[0]
    assert bool(ours.grads["weight"].any()) == (upstream != 0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_upstream_gradient_that_is_no_number(dtype, value):
    """Of one row or of all; with it every column is kept."""
    case = sampled_case(dtype, reduction="none", ignored=0.0)
    for upstream in (torch.full((24,), value), torch.ones(24).index_fill_(0, torch.tensor([5]), value)):
        assert_whole(case, upstream=upstream)


@pytest.mark.parametrize("where", ["hidden", "weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_that_are_no_numbers(dtype, value, where):
    case = sampled_case(dtype, ignored=0.0)
    x = getattr(case, where).clone()
    x[3, 2] = value
    compare(replace(case, **{where: x}))


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("std", [0.0, 1e-3, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_any_size(dtype, std, offset):
    case = sampled_case(dtype, std=std, bias=True, chunk_tokens=10)
    compare(case.using(bias=case.options["bias"] + offset), 0.3)


def zero_rows(weight):
    return weight * (torch.arange(len(weight)) % 3 > 0)[:, None]


VALUES = {
    "hidden all equal": lambda c: replace(c, hidden=c.hidden[:1].expand_as(c.hidden).clone()),
    "hidden of mean zero": lambda c: replace(c, hidden=torch.cat([c.hidden[:12], -c.hidden[:12]])),
    "hidden zero": lambda c: replace(c, hidden=torch.zeros_like(c.hidden)),
    "weight zero": lambda c: replace(c, weight=torch.zeros_like(c.weight)),
    "rows of zeros": lambda c: replace(c, weight=zero_rows(c.weight)),
    "tiny": lambda c: replace(c, hidden=c.hidden * 1e-6, weight=c.weight * 1e-6),
    "one token": lambda c: replace(c, target=torch.full_like(c.target, 7)),
}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(dtype, values, reduction):
    case = VALUES[values](sampled_case(dtype, reduction=reduction, ignored=0.0, chunk_tokens=10))
    for tolerance in (1e-6, 0.1, 0.3):
        compare(case, tolerance)


def test_a_gradient_that_cancels():
    """Rows of d(logits) add up to 0: equal rows of the weight leave nothing of dhidden."""
    case = sampled_case(torch.float64, ignored=0.0)
    case = replace(case, weight=case.weight[:1].expand_as(case.weight).clone())
    logits = case.hidden @ case.weight.T
    dlogits = logits.softmax(-1) - torch.nn.functional.one_hot(case.target, logits.shape[1])
    without_signs = dlogits.norm() / len(logits) * case.weight[0].norm()
    for tolerance in (1e-6, 0.1, 0.3, 0.9):
        up = torch.tensor(1.0)
        ours = evaluate(linear_cross_entropy, case.using(grad_tolerance=tolerance, generator=torch.Generator()), up)
        assert ours.grads["hidden"].norm() < 2 * tolerance * without_signs


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_a_tolerance_too_small_keeps_everything(dtype):
    assert_whole(sampled_case(dtype), tolerance=1e-7)


def test_large_probabilities_of_targets():
    """Distributions that do not add up to 1, and some rows of them that are zero."""
    case = make_case(lead=(24,), v=300, std=3.0, kind="sparse")
    ids, probability = case.target
    weight = torch.ones_like(probability).index_fill_(0, torch.arange(8), 0)
    compare(replace(case, target=(ids, probability * weight * 100)), 0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_autocast(reduction, dtype):
    case = sampled_case(reduction=reduction)
    with torch.autocast("cpu", dtype):
        ours, _, records = compare(case, 0.3)
    assert ours.grads["weight"].dtype == torch.float32
    assert 0 < records[0].columns_kept < 0.5


@pytest.mark.parametrize("leaf", ["hidden", "weight"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_are_apart_in_memory(dtype, leaf):
    """The same as of contiguous tensors, bit for bit."""
    case = sampled_case(dtype, chunk_tokens=10)
    layouts = (
        lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
        lambda x: x.t().contiguous().t(),
        lambda x: x.flip(0).flip(0),
    )

    def gradients(turn):
        leaves = {name: x.clone().requires_grad_() for name, x in case.leaves().items()}
        turned = {**leaves, leaf: turn(leaves[leaf])}
        loss = case.with_leaves(turned).call(linear_cross_entropy, grad_tolerance=0.3, generator=torch.Generator())
        return torch.autograd.grad(loss, list(leaves.values()))

    plain = gradients(lambda x: x)
    for turn in layouts:
        for x, y in zip(gradients(turn), plain, strict=True):
            eps = 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(x, y, rtol=eps, atol=eps * float(y.abs().max()))


@pytest.mark.parametrize("kind", [Opened, Parted, LinearAlone])
@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_a_weight_with_its_own_matmul(dtype, kind):
    """Its dequantized values are sampled; one without them is multiplied exactly."""
    case = sampled_case(dtype).freeze("weight")
    weight = (Parted.of if kind is Parted else kind)(case.weight)
    ours, _, records = compare(replace(case, weight=weight), 0.2)
    assert [record.columns_kept < 0.5 for record in records] == ([] if kind is LinearAlone else [True])
    assert set(ours.grads) == {"hidden"}
