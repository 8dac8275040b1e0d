"""A head in float32 over hidden states of bfloat16: the logits are never rounded to bfloat16."""

import pytest
import torch
import torch.nn.functional as F

from cynosure.loss import linear_cross_entropy, linear_kl_div, linear_topk_kl_div, token_logprobs, token_stats
from tests.loss import oracle
from tests.loss.cases import REDUCTIONS, evaluate, make_case
from tests.loss.graphs import full_graph
from tests.loss.probes import Allocations, Gemms, assert_three_way, rms_error

HALF = torch.bfloat16


def in_float32(hidden, weight, target, *, bias=None, **options):
    """What users write: casts, and full logits."""
    bias = None if bias is None else bias.float()
    return oracle.loss_of_logits(F.linear(hidden.float(), weight.float(), bias), target, **options)


def assert_as_exact(case, **how):
    truth = evaluate(oracle.loss, case.double()).named()
    theirs = evaluate(in_float32, case).named()
    ours = evaluate(linear_cross_entropy, case.using(head_dtype=torch.float32, **how)).named()
    for name, x in ours.items():
        assert x.dtype == theirs[name].dtype
        eps = torch.finfo(torch.float32).eps * (1 + truth[name].abs().max().item())
        assert_three_way(x, theirs[name], truth[name], eps=eps, name=name, error=rms_error)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_logits_are_not_rounded(reduction, backend):
    case = make_case(lead=(64,), d=16, v=50, std=8, bias=True, reduction=reduction).to(HALF)
    with Gemms() as gemms:
        assert_as_exact(case, backend=backend, chunk_tokens=10)
    assert HALF not in gemms.dtypes


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_with_every_option(kind):
    case = make_case(
        lead=(3, 9), d=16, v=50, kind=kind, std=30, bias=True, class_weight=True, token_weight=True,
        label_smoothing=0.1, z_loss=0.01, softcap=30.0, scale=0.7, shift=1,
    ).to(HALF)  # fmt: skip
    assert_as_exact(case)


def test_a_float32_weight_meets_bfloat16_hidden_states():
    case = make_case(lead=(9,), d=16, v=50).to(torch.float32)
    case = case.with_leaves({"hidden": case.hidden.to(HALF)})
    assert_as_exact(case)
    with pytest.raises(TypeError, match="or pass head_dtype"):
        case.call(linear_cross_entropy)


def test_it_goes_before_autocast():
    case = make_case(lead=(9,), d=16, v=50, dtype=torch.float32)
    with torch.autocast(case.hidden.device.type, dtype=HALF):
        loss = case.call(linear_cross_entropy, head_dtype=torch.float32)
    assert torch.equal(loss, case.call(linear_cross_entropy))


def with_float32_matmuls(op, *inputs, **options):
    """The results and gradients of an operation with a head in float32, and of the operation on float32 inputs."""
    both = []
    for inputs_of, more in ((inputs, {"head_dtype": torch.float32}), ([x.float() for x in inputs], {})):
        leaves = [x.detach().clone().requires_grad_() for x in inputs_of]
        results = op(*leaves, **more, **options)
        results = results if isinstance(results, tuple) else (results,)
        given = [x for x in results if x.requires_grad]
        gradients = torch.autograd.grad(sum(x.sum() for x in given), leaves) if given else ()
        assert all(g.dtype == x.dtype for g, x in zip(gradients, leaves, strict=False))
        both.append([*results, *(g.to(HALF) for g in gradients)])
    return both


IDS = torch.tensor([[0, 3], [2, 1], [4, 2]])
OPERATIONS = {
    "logprobs": lambda h, w, **how: token_logprobs(h, w, IDS[:, 0], **how),
    "given-ids": lambda h, w, **how: token_logprobs(h, w, IDS, entropy=True, temperature=0.7, **how),
    "stats": lambda h, w, **how: token_stats(h, w, IDS[:, 0], topk=2, **how),
    "kl": lambda h, w, **how: linear_kl_div(h, w, h.detach() * 2, w.detach(), **how),
    "topk-kl": lambda h, w, **how: linear_topk_kl_div(h, w, IDS, torch.full((3, 2), -1.5), **how),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_other_operations(name):
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 16).to(HALF), (2 * torch.randn(9, 16)).to(HALF)
    for x, y in zip(*with_float32_matmuls(OPERATIONS[name], hidden, weight), strict=True):
        torch.testing.assert_close(x, y)


def test_log_probabilities_in_a_graph():
    hidden, weight = torch.randn(3, 16).to(HALF), torch.randn(9, 16).to(HALF)
    compiled = full_graph(OPERATIONS["given-ids"], "aot_eager")
    how = {"head_dtype": torch.float32}
    for x, y in zip(compiled(hidden, weight, **how), OPERATIONS["given-ids"](hidden, weight, **how), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.cpu_only
def test_the_weight_is_copied_once():
    """In float32 there are that copy, and the sums of dW."""
    d, v, n = 8, 5000, 100
    hidden, weight = torch.randn(n, d, dtype=HALF), torch.randn(v, d, dtype=HALF)
    hidden.requires_grad_(), weight.requires_grad_()
    with Allocations(hidden, weight, large=v * d) as made:
        loss = linear_cross_entropy(
            hidden, weight, torch.randint(v, (n,)), head_dtype=torch.float32, backend="torch", chunk_tokens=7
        )
        loss.backward()
    assert sum(storage.nbytes() == v * d * 4 for storage in made.kept.values()) == 2


@pytest.mark.cpu_only
def test_sampled():
    """The tolerance of the dtype is that of the matmuls: exact in float32."""
    case = make_case(lead=(64,), d=16, v=500).to(HALF).using(head_dtype=torch.float32)
    exact, sampled = (
        evaluate(linear_cross_entropy, case.using(grad_tolerance=tolerance)).named() for tolerance in (0.0, "dtype")
    )
    assert all(torch.equal(x, y) for x, y in zip(exact.values(), sampled.values(), strict=True))
    rough = evaluate(linear_cross_entropy, case.using(grad_tolerance=0.3)).named()
    error = (rough["dweight"] - exact["dweight"]).float().norm() / exact["dweight"].float().norm()
    assert 0 < error < 0.6


def test_in_a_graph():
    case = make_case(lead=(9,), d=16, v=50).to(HALF).using(head_dtype=torch.float32)
    compiled = evaluate(full_graph(linear_cross_entropy, "aot_eager"), case)
    for x, y in zip(compiled.named().values(), evaluate(linear_cross_entropy, case).named().values(), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("wrong", [torch.int64, torch.float8_e4m3fn, "float32"])
def test_bad_input(wrong):
    with pytest.raises(TypeError, match="head_dtype must be None or torch"):
        make_case().call(linear_cross_entropy, head_dtype=wrong)
