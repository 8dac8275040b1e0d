"""Where no gradient is wanted, logits are made by pieces of the vocabulary: of any width, the same numbers come out."""

import pytest
import torch

from cynosure.loss import explain, linear_cross_entropy, token_logprobs, token_stats
from cynosure.loss.sizes import Sizes
from tests.loss import oracle
from tests.loss.cases import KINDS, ids_case, joined, make_case
from tests.loss.probes import Allocations, Gemms
from tests.loss.test_token_stats import GRID, assert_stats, integer_batch, plain

pytestmark = pytest.mark.usefixtures("poison_empty")

INF = float("inf")
V = 11
ROWS = 9


@pytest.fixture
def pieces_of(monkeypatch):
    """Sets how many columns a piece of ROWS rows has."""

    def choose(columns, dtype=torch.float64):
        monkeypatch.setattr(Sizes, "piece_bytes", columns * ROWS * dtype.itemsize)
        assert Sizes().piece(ROWS, V, dtype, None) == (ROWS, min(columns, V))

    return choose


EVERYTHING = {
    "bias": True, "class_weight": True, "token_weight": True, "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 3.0,
    "scale": -0.7,
}  # fmt: skip


@pytest.mark.parametrize("columns", [1, 2, 3, 6, V])
@pytest.mark.parametrize(
    "options", [{}, *({k: v} for k, v in EVERYTHING.items()), EVERYTHING], ids=lambda o: "-".join(o)
)
@pytest.mark.parametrize("kind", KINDS)
def test_loss(kind, options, columns, backend, pieces_of):
    case = make_case(lead=(ROWS,), v=V, kind=kind, ignored=0, reduction="none", **options)
    pieces_of(columns)
    with torch.no_grad():
        ours = case.call(linear_cross_entropy, backend=backend)
    torch.testing.assert_close(ours, case.call(oracle.loss), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [1, 2, 3, 6, V])
@pytest.mark.parametrize("options", [{}, {"bias": True, "softcap": 2.0, "scale": 0.4}, {"scale": -1.0}])
@pytest.mark.parametrize("topk", [0, 1, 4, V])
def test_figures(topk, options, columns, backend, pieces_of):
    case = make_case(lead=(ROWS,), v=V, ignored=0, **options)
    pieces_of(columns)
    ours = case.call(token_stats, topk=topk, temperatures=GRID, backend=backend)
    assert_stats(ours, plain(case, topk=topk, temperatures=GRID))


@pytest.mark.parametrize("columns", [1, 2, 3, 6, V])
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "scale": 0.4, "temperature": 0.6}, {"scale": -1.0}])
@pytest.mark.parametrize("impossible", [False, True])
def test_given_ids_and_the_entropy(impossible, options, columns, backend, pieces_of):
    """In several parts of rows too; a piece may have only impossible classes."""
    case = ids_case(lead=(4 * ROWS,), v=V, ignored=0.0, **options)
    if impossible:
        case.options["bias"][:3] = -INF * options.get("scale", 1.0)
    pieces_of(columns)
    both = joined(token_logprobs, backend=backend, chunk_tokens=ROWS)
    torch.testing.assert_close(case.call(both), case.call(joined(oracle.logprobs_of_hidden)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("topk", [7, 40])
def test_ties(topk, dtype, columns, backend, monkeypatch):
    """Argmax is the first of equals, in whichever piece, and so is the order of the top."""
    case = integer_batch(dtype)
    monkeypatch.setattr(Sizes, "piece_bytes", columns * len(case.hidden) * dtype.itemsize)
    ours = case.call(token_stats, topk=topk, backend=backend)
    logits = case.hidden.double() @ case.weight.double().T
    first = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(ours.rank, 1 + (logits > logits.gather(-1, case.target[:, None])).sum(-1))
    assert torch.equal(ours.argmax, first)
    if backend == "torch":  # whose topk takes some of the equals
        assert torch.equal(logits.gather(-1, ours.top_ids), logits.gather(-1, order[:, :topk]))
    else:
        assert torch.equal(ours.top_ids, order[:, :topk])


@pytest.mark.parametrize("columns", [1, 2, 3, 6])
@pytest.mark.parametrize("special", [-INF, INF, float("nan")])
@pytest.mark.parametrize("at", [[0], [4], [10], [0, 1, 2], [3, 10], list(range(V))])
def test_special_logits(at, special, columns, backend, pieces_of):
    """Whole pieces of impossible classes, infinities and NaN: as with whole rows."""
    case = make_case(lead=(ROWS,), v=V, ignored=0, bias=True, reduction="none")
    case.target[:] = torch.arange(ROWS)
    case.options["bias"][at] = special

    def everything():
        with torch.no_grad():
            loss = case.call(linear_cross_entropy, backend=backend)
        return loss, case.without("reduction").call(token_stats, temperatures=GRID, backend=backend)

    whole_loss, whole = everything()
    truth = plain(case.without("reduction"), temperatures=GRID)
    pieces_of(columns)
    loss, ours = everything()
    torch.testing.assert_close(loss, whole_loss, rtol=1e-12, atol=1e-12, equal_nan=True)
    for name, x in ours._asdict().items():
        torch.testing.assert_close(x, getattr(whole, name), rtol=1e-12, atol=1e-12, equal_nan=True, msg=name)
    assert torch.equal(ours.nll.isfinite(), truth.nll.isfinite())
    if special == -INF and len(at) < V:
        torch.testing.assert_close(ours.nll, truth.nll, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ours.entropy, truth.entropy, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("topk", [3, 6])
def test_a_top_longer_than_what_is_possible(topk, backend, pieces_of):
    case = make_case(lead=(ROWS,), v=V, ignored=0, bias=True)
    case.options["bias"][3:] = -INF
    pieces_of(2)
    ours = case.call(token_stats, topk=topk, backend=backend)
    assert torch.equal(ours.top_ids[:, :3].sort(-1).values, torch.arange(3).expand(ROWS, 3))
    assert (ours.top_logprobs[:, 3:] == -INF).all()
    assert all(len(set(row.tolist())) == topk for row in ours.top_ids)
    assert (ours.top_ids >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_target_is_compared_with_what_it_is_itself(dtype, backend, monkeypatch):
    """Its logit is a product of its own: of the same rounding, or ranks and argmax would contradict each other."""
    case = make_case(lead=(130,), d=300, v=5003, ignored=0).to(dtype)
    logits = case.hidden.double() @ case.weight.double().T
    case.target[::2] = logits.argmax(-1)[::2]
    monkeypatch.setattr(Sizes, "piece_bytes", 130 * dtype.itemsize * 320)
    ours = case.call(token_stats, backend=backend)
    assert torch.equal(ours.rank == 1, ours.argmax == case.target) or dtype == torch.bfloat16  # where ties are many
    assert (ours.rank[ours.argmax == case.target] == 1).all()
    above = (logits > logits.gather(-1, case.target[:, None])).sum(-1)
    assert ((ours.rank - 1 - above).abs() <= (2 if dtype == torch.float32 else 50)).all()


def test_equal_embeddings_tie(backend, monkeypatch):
    """Tokens that were never trained often share one embedding: none of them is above another."""
    case = make_case(lead=(70,), d=300, v=1000, ignored=0).to(torch.float32)
    case.weight[:] = case.weight[0]
    monkeypatch.setattr(Sizes, "piece_bytes", 70 * 4 * 128)
    ours = case.call(token_stats, backend=backend)
    assert ours.nll.allclose(torch.tensor(1000.0).log(), rtol=1e-5)
    assert (ours.rank == 1).float().mean() > 0.9  # but for what a product rounds differently at its edge


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_is_held_whole(dtype, backend, monkeypatch):
    monkeypatch.setattr(Sizes, "piece_bytes", 2**18)
    case = make_case(lead=(50,), d=3, v=20_011).to(dtype)
    with Allocations(case.hidden, case.weight, case.target) as made, torch.no_grad():
        case.call(linear_cross_entropy, backend=backend)
        case.call(token_stats, topk=3, backend=backend)
    assert made.largest <= 2**18
    assert explain(50, 3, 20_011, dtype=dtype, backend=backend, requires_grad=False).chunk_vocab < 20_011


def test_one_product_and_the_targets(backend, pieces_of):
    case = make_case(lead=(ROWS,), v=V, ignored=0, reduction="none")
    pieces_of(3)
    with Gemms() as of_loss, torch.no_grad():
        case.call(linear_cross_entropy, backend=backend)
    with Gemms() as of_stats:
        case.without("reduction").call(token_stats, backend=backend)
    assert of_loss.count(ROWS, 5, V) == 1
    assert of_stats.count(ROWS, 5, V) == pytest.approx(1 + ROWS / V)
