"""No operation ever holds N x V numbers: every storage is watched, forward and backward, for every option."""

import pytest
import torch

from cynosure.loss import cross_entropy, explain, linear_cross_entropy, token_logprobs, token_stats
from cynosure.loss.sizes import Sizes
from tests.loss.cases import KINDS, REDUCTIONS, make_case, upstream_like
from tests.loss.probes import Allocations, Gemms

pytestmark = pytest.mark.cpu_only

N, D, V, CHUNK = 40, 2, 2100, 4
# The largest that may be held: a chunk of logits, dweight, dhidden, the N x K of a sparse target.
ALLOWED = max(CHUNK * V, V * D, N * D, N * 3)

EVERYTHING = {
    "bias": True,
    "class_weight": True,
    "token_weight": True,
    "label_smoothing": 0.1,
    "z_loss": 0.01,
    "softcap": 3.0,
    "scale": 0.7,
    "shift": 1,
}
ONE_EACH = [{}, *({name: value} for name, value in EVERYTHING.items()), EVERYTHING]


def leaves_of(case):
    """With a gradient wanted of all but a dense target, whose gradient is of its own size."""
    leaves = {name: x for name, x in case.leaves().items() if name != "probability" or isinstance(case.target, tuple)}
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    return case.with_leaves(leaves), list(leaves.values())


def inputs_of(case):
    return case.hidden, case.weight, case.target, list(case.options.values())


@pytest.mark.many_rows
@pytest.mark.parametrize("options", ONE_EACH, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_no_full_logits(dtype, reduction, kind, options, backend):
    case = make_case(lead=(2, N // 2), d=D, v=V, kind=kind, reduction=reduction, **options).to(dtype)
    case, leaves = leaves_of(case)
    with Allocations(inputs_of(case)) as made:
        loss = case.call(linear_cross_entropy, backend=backend, chunk_tokens=CHUNK)
        for _ in range(2):
            torch.autograd.grad(loss, leaves, upstream_like(loss), retain_graph=True)
    assert made.largest <= ALLOWED


def test_the_watch_sees_full_logits():
    case, _ = leaves_of(make_case(lead=(2, N // 2), d=D, v=V))
    with Allocations(inputs_of(case)) as made:
        torch.nn.functional.linear(case.hidden, case.weight)
    assert made.largest == N * V


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("strided", [False, True])
def test_an_expanded_distribution_stays_one_row(strided, reduction, options, backend):
    case = make_case(lead=(2, N // 2), d=D, v=V, kind="dense", reduction=reduction, **options)
    row = torch.randn(2 * V, dtype=torch.float64).softmax(-1)
    row = row[::2] if strided else row[:V]
    case = type(case)(case.hidden, case.weight, row.expand(2, N // 2, V), case.options)
    case, leaves = leaves_of(case)
    with Allocations(inputs_of(case)) as made:
        loss = case.call(linear_cross_entropy, backend=backend, chunk_tokens=CHUNK)
        torch.autograd.grad(loss, leaves, upstream_like(loss))
    assert made.largest <= ALLOWED


@pytest.mark.parametrize("layout", [lambda x: x.mT.contiguous().mT, lambda x: x.flip(0)], ids=["transposed", "flipped"])
def test_a_distribution_of_odd_strides_is_not_copied_whole(layout, backend):
    case = make_case(lead=(4, N // 4), d=D, v=V, kind="dense", shift=1)
    case = type(case)(case.hidden, case.weight, layout(case.target), case.options)
    case, leaves = leaves_of(case)
    with Allocations(inputs_of(case)) as made:
        torch.autograd.grad(case.call(linear_cross_entropy, backend=backend, chunk_tokens=CHUNK), leaves)
    assert made.largest <= ALLOWED


def test_logprobs_and_stats_hold_no_full_logits(backend):
    case = make_case(lead=(2, N // 2), d=D, v=V, bias=True, softcap=3.0, scale=0.7, shift=1)
    case, leaves = leaves_of(case)
    with Allocations(inputs_of(case)) as made:
        logprobs = case.call(token_logprobs, backend=backend, chunk_tokens=CHUNK)
        torch.autograd.grad(logprobs, leaves, upstream_like(logprobs))
        case.call(token_stats, topk=3, temperatures=[0.5, 1.0, 2.0], backend=backend, chunk_tokens=CHUNK)
    assert made.largest <= ALLOWED


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_of_logits_already_there_only_their_gradient_is_made(reduction, kind, options, backend):
    """But for a piece of fixed size: a long batch is visited in more pieces, not in larger ones."""
    case = make_case(lead=(2, 12 * N), d=D, v=V, kind=kind, reduction=reduction, **options).without("bias")
    logits = (case.hidden @ case.weight.T).requires_grad_()
    with Allocations(logits, inputs_of(case)) as forward:
        loss = cross_entropy(logits, case.target, backend=backend, **case.options)
    assert forward.largest <= logits.numel() // 4
    with Allocations(logits, inputs_of(case), large=logits.numel() // 4 + 1) as backward:
        loss.backward(upstream_like(loss))
    assert len(backward.kept) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("reduction", "requires_grad"), [("mean", True), ("none", True), ("mean", False)])
def test_explain_tells_the_truth(reduction, requires_grad, dtype, backend):
    """The plan's products and buffers are those of the call it describes."""
    plan = explain(
        N, D, V, dtype=dtype, reduction=reduction, requires_grad=requires_grad, backend=backend, chunk_tokens=CHUNK
    )
    hidden, weight = torch.randn(N, D, dtype=dtype), torch.randn(V, D, dtype=dtype)
    hidden.requires_grad_(requires_grad), weight.requires_grad_(requires_grad)
    target = torch.randint(V, (N,))
    with Gemms() as gemms, Allocations(hidden, weight, target) as made:
        loss = linear_cross_entropy(hidden, weight, target, reduction=reduction, backend=backend, chunk_tokens=CHUNK)
        if requires_grad:
            loss.sum().backward()
    assert (plan.backend, plan.chunk_tokens, plan.n_chunks) == (backend, CHUNK, N // CHUNK)
    assert plan.n_gemms == gemms.count(N, D, V)
    assert made.largest <= ALLOWED
    assert 0 < plan.logits_bytes <= CHUNK * V * 4
    assert plan.full_logits_bytes == N * V * dtype.itemsize
    assert plan.accumulator_bytes == (V * D * 4 if requires_grad and dtype == torch.bfloat16 else 0)
    assert backend in str(plan)


@pytest.mark.parametrize("n", [1, 1024, 4096, 100_000])
def test_what_is_held_is_flat_in_n(n):
    plan = explain(n, 640, 262_144)
    assert plan.chunk_tokens * plan.n_chunks >= n
    assert plan.logits_bytes <= explain(10**6, 640, 262_144).logits_bytes
    assert plan.logits_bytes < 0.5 * plan.full_logits_bytes or n < 1024


@pytest.mark.parametrize("v", [1000, 32_000, 262_144, 2**20, 2**28])
def test_a_vocabulary_of_any_size_stays_within_the_limit(v):
    """A chunk has fewer rows where they are long, and one at least; less than a page separates two rows."""
    plan = explain(100_000, 64, v)
    assert plan.logits_bytes - 4096 * plan.chunk_tokens <= max(Sizes().max_bytes, 4 * v)


HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("n", [1, 100, 512, 820, 821, 1000, 1024, 2048, 8192, 100_000])
def test_half_precision_holds_a_quarter_of_the_logits_and_an_accumulator(n, dtype):
    """Or all logits, where that is no more than a chunk of 205 rows and the accumulator: then there is none."""
    d, v = 640, 262_144
    plan = explain(n, d, v, dtype=dtype)
    quarter = max(plan.full_logits_bytes // 4, 205 * v * 2)
    assert plan.logits_bytes + plan.accumulator_bytes <= 1.005 * (quarter + max(plan.accumulator_bytes, v * d * 2))
    assert (plan.accumulator_bytes == 0) == (plan.n_chunks == 1) == (n <= 820)
    assert plan.chunk_tokens <= 512 or plan.n_chunks == 1


@pytest.mark.parametrize("frozen", [False, True])
def test_only_a_sum_in_half_precision_is_worth_all_logits(frozen):
    """Without dW there is no accumulator to save, and the rows are split."""
    n, d, v = 512, 300, 32_768
    hidden, weight = torch.randn(n, d).bfloat16().requires_grad_(), torch.randn(v, d).bfloat16()
    weight.requires_grad_(not frozen)
    with Allocations(hidden, weight, large=200 * v) as made:
        linear_cross_entropy(hidden, weight, torch.randint(v, (n,)), backend="torch").backward()
    stride = Sizes().row_stride(v, torch.bfloat16)
    assert made.largest == (256 if frozen else n) * stride


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("v", [32_768, 49_152, 50_257, 128_256, 151_936, 262_144])
def test_long_rows_are_spread_over_the_cache(v, dtype):
    """Rows begin at whole cache lines, an odd number of them and half a page apart; they grow by a page at most."""
    stride = Sizes().row_stride(v, dtype) * dtype.itemsize
    assert stride % 4096 == 2048 + 64
    assert 0 <= stride - v * dtype.itemsize < 4096
    assert Sizes().row_stride(1000, dtype) == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_plan_counts_the_space_between_rows(dtype, backend):
    n, d, v = 9, 2, 33_000
    case = make_case(lead=(n,), d=d, v=v, dtype=dtype, bias=True)
    case, leaves = leaves_of(case)
    plan = explain(n, d, v, dtype=dtype, backend=backend, chunk_tokens=4)
    with Allocations(inputs_of(case)) as made:
        loss = case.call(linear_cross_entropy, backend=backend, chunk_tokens=4)
        torch.autograd.grad(loss, leaves)
    assert made.largest * dtype.itemsize == plan.logits_bytes > 4 * v * dtype.itemsize


@pytest.mark.parametrize(("tolerance", "rows"), [(0.0, 200), (0.02, 150)])
def test_a_sampled_chunk_has_fewer_rows(tolerance, rows):
    """Sums over columns, and the rows of kept columns, take the memory of 32 rows."""
    n, d, v = 600, 8, 32_768
    assert explain(n, d, v, grad_tolerance=tolerance).chunk_tokens == rows
    hidden, weight = torch.randn(n, d).requires_grad_(), torch.randn(v, d).requires_grad_()
    with Allocations(hidden, weight) as made:
        linear_cross_entropy(hidden, weight, torch.randint(v, (n,)), grad_tolerance=tolerance).backward()
    assert made.largest == rows * Sizes().row_stride(v, torch.float32)
