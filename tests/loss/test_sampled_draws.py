"""The draws of the sampled backward: the same seed and chunks repeat them, whatever else differs."""

import pytest
import torch

from cynosure.loss import linear_cross_entropy, record_sampling
from cynosure.loss.sampling import sampler
from tests.loss.cases import KINDS, REDUCTIONS, evaluate
from tests.loss.sampled import sampled_case

pytestmark = pytest.mark.cpu_only

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture
def draws(monkeypatch):
    """The columns of every draw."""
    seen, own = [], sampler.draw

    def draw(q, generator):
        seen.append(own(q, generator))
        return seen[-1]

    monkeypatch.setattr(sampler, "draw", draw)
    return seen


def drawn(case, seed=1, **options):
    return evaluate(linear_cross_entropy, case.using(generator=torch.Generator().manual_seed(seed), **options))


def same(a, b):
    return all(torch.equal(x, b.named()[name]) for name, x in a.named().items())


@pytest.mark.parametrize("chunk_tokens", [None, 5])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_seed_repeats_its_gradients(dtype, kind, reduction, chunk_tokens, backend):
    case = sampled_case(dtype, kind=kind, reduction=reduction, chunk_tokens=chunk_tokens, backend=backend)
    options = {"grad_tolerance": 0.3}
    with record_sampling() as records:
        first, again, other = (drawn(case, seed, **options) for seed in (1, 1, 2))
    assert all(0 < record.columns_kept < 0.5 for record in records)
    assert same(first, again)
    assert not torch.equal(first.grads["hidden"], other.grads["hidden"])
    assert not torch.equal(first.grads["weight"], other.grads["weight"])
    assert torch.equal(first.loss, other.loss)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_another_upstream_gradient_keeps_the_same_columns(reduction, draws):
    """A second backward of one graph scales what the first one drew."""
    case = sampled_case(reduction=reduction, chunk_tokens=9, grad_tolerance=0.2)
    leaves = {name: x.clone().requires_grad_() for name, x in case.leaves().items()}
    loss = case.with_leaves(leaves).call(linear_cross_entropy)
    up = torch.ones_like(loss)
    first, second, double = (
        torch.autograd.grad(loss, list(leaves.values()), u, retain_graph=True) for u in (up, up, 2 * up)
    )
    assert all(map(torch.equal, first, second))
    for x, y in zip(first, double, strict=True):
        torch.testing.assert_close(2 * x, y)
    n_backwards = len(draws) // 3
    assert n_backwards > 1
    for a, b in zip(draws, draws[n_backwards:], strict=False):
        assert torch.equal(a.ids, b.ids)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_the_columns(dtype, draws):
    case = sampled_case(dtype, lead=(300,), d=16, v=2000, chunk_tokens=128)
    kept = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        drawn(case, grad_tolerance=0.3)
        kept.append([ids.clone() for ids, _ in draws])
        draws.clear()
    assert len(kept[0]) > 1
    assert all(map(torch.equal, *kept))


@pytest.mark.parametrize("chunk_tokens", [None, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tolerance_of_0_is_the_exact_path(dtype, kind, chunk_tokens, draws):
    case = sampled_case(dtype, kind=kind, chunk_tokens=chunk_tokens, bias=True)
    with record_sampling() as records:
        before = torch.get_rng_state()
        assert same(drawn(case, grad_tolerance=0.0), evaluate(linear_cross_entropy, case))
        assert torch.equal(torch.get_rng_state(), before)
    assert records == draws == []


def test_each_chunk_draws_anew(draws):
    """The chunks of equal rows share a generator, not their columns."""
    case = sampled_case(lead=(8,), ignored=0.0)
    many = type(case)(case.hidden.repeat(4, 1), case.weight, case.target.repeat(4), {"chunk_tokens": 8})
    drawn(many, grad_tolerance=0.3)
    ids = [set(kept.ids.tolist()) for kept in draws[1:]]  # the first is a pilot
    assert len(ids) == 4
    assert len({frozenset(x) for x in ids}) == 4


def test_columns_do_not_depend_on_those_of_another_call(draws):
    """A default generator gives each call a seed of its own; the order of calls with given seeds is of no matter."""
    case = sampled_case()
    drawn(case, 1, grad_tolerance=0.2)
    n, first = len(draws), draws[-1].ids.clone()
    drawn(case, 2, grad_tolerance=0.2)
    drawn(case, 1, grad_tolerance=0.2)
    assert torch.equal(draws[-1].ids, first)
    assert not torch.equal(draws[2 * n - 1].ids, first)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_kept_columns_add_up(dtype, monkeypatch):
    case = sampled_case(dtype)
    whole = drawn(case, grad_tolerance=0.1)
    monkeypatch.setattr(sampler, "BLOCK", 7)
    for (name, x), y in zip(drawn(case, grad_tolerance=0.1).named().items(), whole.named().values(), strict=True):
        eps = 4 * torch.finfo(x.dtype).eps
        torch.testing.assert_close(x, y, rtol=eps, atol=eps * float(y.abs().max()), msg=lambda m, n=name: f"{n}: {m}")
