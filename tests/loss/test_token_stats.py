"""Every figure of token_stats against a plain computation from full logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cynosure.loss import TokenStats, token_stats
from tests.loss import oracle
from tests.loss.cases import Case, make_case
from tests.loss.interpreter import INTERPRETED
from tests.loss.probes import Gemms, assert_three_way, rms_error

pytestmark = pytest.mark.usefixtures("poison_empty")

INF = float("inf")
INTEGERS = ("rank", "argmax", "top_ids")
GRID = [0.25, 0.5, 1.0, 2.0, 7.0]


def plain(case, topk=0, temperatures=(), **logits_options):
    """The oracle's figures for the same batch, shaped as token_stats shapes them."""
    options = {"softcap": None, "scale": 1.0, "ignore_index": -100, **case.options, **logits_options}
    logits = F.linear(case.hidden, case.weight, options.pop("bias", None))
    logits, target, _ = oracle.shifted(logits, case.target, None, options.pop("shift", 0))
    flat = oracle.stats(
        logits.reshape(-1, logits.shape[-1]), target.reshape(-1), topk=topk, temperatures=temperatures, **options
    )
    return TokenStats(**{name: x.reshape(target.shape + x.shape[1:]) for name, x in flat.items()})


def assert_stats(ours, truth, tol=1e-12):
    for name, x in ours._asdict().items():
        y = getattr(truth, name)
        assert x.shape == y.shape, name
        if name in INTEGERS:
            assert x.dtype == torch.int64
            assert torch.equal(x, y), name
        else:
            torch.testing.assert_close(x, y, rtol=tol, atol=tol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize(("lead", "shift"), [((), 0), ((1,), 0), ((9,), 1), ((2, 5), 2), ((2, 2, 4), 1), ((0,), 0)])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 3, 100])
def test_every_figure(chunk_tokens, lead, shift, scale, softcap, bias, backend):
    case = make_case(lead=lead, v=11, bias=bias, softcap=softcap, scale=scale, shift=shift, ignore_index=-1)
    ours = case.call(token_stats, topk=4, temperatures=GRID, backend=backend, chunk_tokens=chunk_tokens)
    assert_stats(ours, plain(case, topk=4, temperatures=GRID))


@settings(
    max_examples=30 if INTERPRETED else 100, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    n=st.integers(0, 20),
    v=st.integers(1, 30),
    topk=st.integers(0, 30),
    std=st.sampled_from([0.1, 3.0, 30.0]),
    chunk_tokens=st.none() | st.integers(1, 25),
    temperatures=st.lists(st.floats(0.05, 20), max_size=3),
    seed=st.integers(0, 999),
)
def test_any_shape(n, v, topk, std, chunk_tokens, temperatures, seed, backend):
    case = make_case(lead=(n,), v=v, std=std, seed=seed)
    how = {"topk": min(topk, v), "temperatures": temperatures}
    ours = case.call(token_stats, **how, backend=backend, chunk_tokens=chunk_tokens)
    assert_stats(ours, plain(case, **how), tol=1e-11)


def test_a_vocabulary_so_large_that_rows_are_taken_in_pieces(backend):
    case = make_case(lead=(11,), d=3, v=180_001, bias=True)
    how = {"topk": 5, "temperatures": [0.7, 1.3]}
    assert_stats(case.call(token_stats, **how, backend=backend), plain(case, **how))


def integer_batch(dtype, v=40):
    """Small integers, of which every product and sum is exact in any dtype, and ties are many."""
    torch.manual_seed(3)
    hidden, weight = torch.randint(-2, 3, (30, 3)).to(dtype), torch.randint(-2, 3, (v, 3)).to(dtype)
    return Case(hidden, weight, torch.randint(v, (30,)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ties(dtype, backend):
    """Rank counts what is strictly above; argmax and the top are some of the equals, each listed once."""
    case = integer_batch(dtype)
    ours = case.call(token_stats, topk=40, backend=backend, chunk_tokens=7)
    logits = F.linear(case.hidden.double(), case.weight.double())
    above = (logits > logits.gather(-1, case.target[:, None])).sum(-1)
    equal = (logits == logits.gather(-1, case.target[:, None])).sum(-1)
    assert (equal > 1).any()
    assert torch.equal(ours.rank, 1 + above)
    assert torch.equal(logits.gather(-1, ours.argmax[:, None])[:, 0], logits.amax(-1))
    assert torch.equal(logits.gather(-1, ours.top_ids), logits.sort(-1, descending=True).values)
    assert torch.equal(ours.top_ids.sort(-1).values, torch.arange(40).expand(30, 40))
    ties = (logits == logits.amax(-1, keepdim=True)).sum(-1) > 1
    assert ties.any()
    assert (ours.margin[ties] == 0).all()
    assert (ours.margin[~ties] > 0).all()


def test_of_equals_at_the_top_all_have_rank_one_and_the_first_is_correct(backend):
    weight = torch.tensor([[2.0], [2.0], [1.0]])
    stats = token_stats(torch.ones(3, 1), weight, torch.arange(3), backend=backend)
    assert stats.rank.tolist() == [1, 1, 3]
    assert stats.correct.tolist() == [1, 0, 0]


def test_correct_is_nan_where_the_loss_is(backend):
    hidden, weight = torch.tensor([[1.0], [math.nan], [INF], [1.0]]), torch.tensor([[1.0], [2.0]])
    stats = token_stats(hidden, weight, torch.tensor([1, 0, 0, -100]), backend=backend)
    assert stats.nll.isnan().tolist() == [False, True, True, True]
    torch.testing.assert_close(stats.correct, torch.tensor([1.0, math.nan, math.nan, math.nan]), equal_nan=True)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("std", [1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("v", [2, 1000, 50257])
def test_rounding(v, dtype, std, offset, backend):
    case = make_case(lead=(24,), d=8, v=v, std=std, bias=True, ignored=0.0)
    case.options["bias"] += offset
    case = case.to(dtype)
    how = {"topk": 2, "temperatures": [0.5, 2.0]}
    ours, theirs = case.call(token_stats, **how, backend=backend), plain(case, **how)
    truth = plain(case.double(), **how)
    for name in set(TokenStats._fields) - set(INTEGERS):
        x, y, z = (getattr(s, name) for s in (ours, theirs, truth))
        assert x.dtype == torch.float32
        eps = torch.finfo(torch.float32).eps * (1 + z.abs().max().item())
        assert_three_way(x, y, z, eps=eps, name=name, error=rms_error)


def test_a_vocabulary_of_one(backend):
    stats = token_stats(
        torch.randn(3, 5), torch.randn(1, 5), torch.tensor([0, -100, 0]), topk=1, temperatures=[3.0], backend=backend
    )
    kept = torch.tensor([True, False, True])
    figures = {"nll": 0, "entropy": 0, "rank": 1, "argmax": 0, "confidence": 1, "margin": 1, "brier": 0}
    for name, value in figures.items():
        assert (getattr(stats, name)[kept] == value).all(), name
    assert (stats.top_ids[kept] == 0).all()
    assert (stats.top_logprobs[kept] == 0).all()
    assert (stats.nll_at_temperature[kept] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_ignored_positions_are_nan_or_minus_one(dtype, backend):
    case = make_case(lead=(3, 4)).to(dtype)
    case.hidden[case.target == -100] = float("nan")
    ours = case.call(token_stats, topk=2, temperatures=[1.0, 2.0], backend=backend, chunk_tokens=2)
    ignored = case.target == -100
    assert 0 < ignored.sum() < 12
    for name, x in ours._asdict().items():
        blank = (x == -1) if name in INTEGERS else x.isnan()
        blank = blank.reshape(3, 4, -1)
        assert blank[ignored].all(), name
        assert not blank[~ignored].any(), name


@pytest.mark.cpu_only
def test_nothing_but_ignored(backend):
    case = make_case()
    case.target.fill_(-100)
    with Gemms() as gemms:
        ours = case.call(token_stats, topk=1, backend=backend)
    assert ours.nll.isnan().all()
    assert (ours.top_ids == -1).all()
    assert gemms.flops == 0


def test_impossible_classes(backend):
    """Logits of minus infinity: 0 log 0 is 0 in the entropy, and only their own tokens cost infinity."""
    case = make_case(lead=(12,), bias=True, ignored=0.0)
    case.options["bias"][[2, 4]] = -INF
    case.target[0], case.target[1] = 2, 3
    how = {"topk": 7, "temperatures": [0.5, 2.0]}
    ours, truth = case.call(token_stats, **how, backend=backend), plain(case, **how)
    assert ours.nll[0] == INF
    assert ours.rank[0] == 6
    assert ours.entropy.isfinite().all()
    assert (ours.top_logprobs[:, 5:] == -INF).all()
    assert_stats(ours._replace(top_ids=ours.top_ids[:, :5]), truth._replace(top_ids=truth.top_ids[:, :5]))


def test_one_possible_class(backend):
    bias = torch.full((4,), -INF, dtype=torch.float64)
    bias[2] = 0.5
    zeros = torch.zeros(2, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    stats = token_stats(*zeros, torch.tensor([2, 0]), bias=bias, temperatures=[2.0], backend=backend)
    assert stats.entropy.tolist() == [0, 0]
    assert stats.confidence.tolist() == [1, 1]
    assert stats.margin.tolist() == [1, 1]
    assert stats.brier.tolist() == [0, 2]
    assert stats.rank.tolist() == [1, 2]
    assert stats.nll_at_temperature.tolist() == [[0], [INF]]


@pytest.mark.parametrize("sure", [10.0, 40.0, 300.0])
def test_sure_and_wrong_stays_finite(sure, backend):
    """Where softmax().log() underflows to infinity, the loss is the gap itself."""
    weight = torch.tensor([[sure], [0.0]])
    stats = token_stats(torch.ones(1, 1), weight, torch.tensor([1]), temperatures=[10.0], backend=backend)
    assert stats.nll.item() == pytest.approx(sure + math.log1p(math.exp(-sure)), rel=1e-6)
    assert stats.nll_at_temperature.item() == pytest.approx(sure / 10 + math.log1p(math.exp(-sure / 10)), rel=1e-6)


def test_temperature_one_is_the_loss(backend):
    case = make_case(ignored=0.0)
    stats = case.call(token_stats, temperatures=[1.0], backend=backend)
    torch.testing.assert_close(stats.nll_at_temperature[..., 0], stats.nll)


def test_no_gradient_and_one_product(backend):
    case = make_case(lead=(8,), ignored=0.0)
    case.hidden.requires_grad_(), case.weight.requires_grad_()
    with Gemms() as gemms:
        stats = case.call(token_stats, topk=3, temperatures=GRID, backend=backend, chunk_tokens=3)
    assert gemms.count(8, 5, 7) == 1
    assert not any(x.requires_grad for x in stats)


def test_inputs_are_left_as_they_were(backend):
    case = make_case(bias=True, softcap=2.0)
    inputs = [case.hidden, case.weight, case.target, case.options["bias"]]
    before = [x.clone() for x in inputs]
    case.call(token_stats, topk=3, temperatures=GRID, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


@pytest.mark.parametrize("layout", [lambda x: x.mT.contiguous().mT, lambda x: x.flip(0)[:1].expand_as(x)])
def test_layout(layout, backend):
    case = make_case(lead=(3, 4), ignored=0.0)
    case = Case(layout(case.hidden), layout(case.weight), case.target)
    assert_stats(case.call(token_stats, backend=backend), plain(case))
