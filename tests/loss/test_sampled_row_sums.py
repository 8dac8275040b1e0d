"""dW added up from rows, whole chunks and one direction: two ways, held to float64."""

import pytest
import torch

from cynosure.loss.matmul.choice import as_if_large
from cynosure.loss.matmul.rivals import why_missing
from cynosure.loss.native.library import INSTRUCTIONS, library
from cynosure.loss.options import accumulation_dtype
from cynosure.loss.sampling.row_sums import SparseSums, WideSums, row_sums

pytestmark = [pytest.mark.cpu_only, pytest.mark.usefixtures("poison_empty")]

SPARSE = [
    pytest.param(name, marks=() if name in library().instructions else pytest.mark.skip(reason=f"no {name}"))
    for name in INSTRUCTIONS
]
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
HIDDEN = [1, 7, 16, 37, 64]
ROWS, PRODUCT = "rows", "product"
PLANS = [(), (ROWS,), (ROWS, ROWS, ROWS), (PRODUCT,), (ROWS, PRODUCT), (PRODUCT, ROWS), (ROWS, PRODUCT, ROWS, PRODUCT)]


def add_up(sums, plan, v, d, dtype, seed=0):
    """Add parts of a plan; return the same in float64."""
    torch.manual_seed(seed)
    wide = accumulation_dtype(dtype)
    total = torch.zeros(v, d, dtype=torch.float64)
    for part in plan:
        if part == ROWS:
            ids = torch.randperm(v)[: max(1, v // 3)].sort().values
            x = torch.randn(len(ids), d).to(wide)
            sums.add_rows(ids, x)
            total[ids] += x.double()
        else:
            a, b = torch.randn(5, v).to(dtype).t(), torch.randn(5, d).to(dtype)
            sums.add_product(a, b)
            total += a.double() @ b.double()
    along, axis = torch.randn(v).to(wide), torch.randn(d).to(wide)
    sums.finish(along, axis)
    return total + along.double()[:, None] * axis.double()


def assert_rounded(dweight, total):
    """Rounded once to a half, from sums in the accumulation dtype; a bit more where a GEMM of torch rounds too."""
    error = 1e-13 if dweight.dtype == torch.float64 else 4e-6
    wanted = total.to(accumulation_dtype(dweight.dtype)).to(dweight.dtype)
    off = (dweight.double() - total).abs()
    if dweight.dtype in (torch.bfloat16, torch.float16):
        assert bool((off <= (wanted.double() - total).abs() + 4 * error + 1e-3 * torch.finfo(dweight.dtype).eps).all())
    else:
        assert bool((off <= error * total.abs().clamp(min=1)).all())


# Not a half and a product: torch's GEMM rounds that to a half.
TYPED = [(dtype, plan) for dtype in DTYPES for plan in PLANS if dtype.itemsize > 2 or PRODUCT not in plan]


@pytest.mark.parametrize(("dtype", "plan"), TYPED)
@pytest.mark.parametrize("d", HIDDEN)
def test_wide_sums(dtype, d, plan):
    dweight = torch.empty(50, d, dtype=dtype)
    assert_rounded(dweight, add_up(WideSums(dweight), plan, 50, d, dtype))


@pytest.mark.parametrize(("dtype", "plan"), [pair for pair in TYPED if pair[0] in DTYPES[:2]])
@pytest.mark.parametrize("d", HIDDEN)
@pytest.mark.parametrize("instructions", SPARSE)
def test_sparse_sums(instructions, dtype, d, plan):
    dweight = torch.empty(50, d, dtype=dtype)
    sums = SparseSums(dweight, INSTRUCTIONS.index(instructions))
    assert_rounded(dweight, add_up(sums, plan, 50, d, dtype))


@pytest.mark.skipif(bool(why_missing("native")), reason=why_missing("native") or "-")
@pytest.mark.parametrize("plan", [plan for plan in PLANS if PRODUCT in plan])
@pytest.mark.parametrize("d", HIDDEN)
@pytest.mark.parametrize("make", [row_sums, WideSums])
def test_our_own_products_of_halves(make, d, plan):
    dweight = torch.empty(50, d, dtype=torch.bfloat16)
    with as_if_large():
        assert_rounded(dweight, add_up(make(dweight), plan, 50, d, torch.bfloat16))


@pytest.mark.parametrize("plan", [plan for plan in PLANS if PRODUCT in plan])
@pytest.mark.parametrize("make", [row_sums, WideSums])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_torchs_products_of_halves(dtype, make, plan):
    """Each of them is rounded to a half at most once more."""
    dweight = torch.empty(50, 24, dtype=dtype)
    total = add_up(make(dweight), plan, 50, 24, dtype)
    assert bool(((dweight.double() - total).abs() <= 2 * torch.finfo(dtype).eps * (total.abs() + 5)).all())


@pytest.mark.skipif(library().functions is None, reason=library().reason or "-")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("n_threads", [1, 2])
def test_many_rows_are_shared_by_threads(n_threads, plan):
    torch.set_num_threads(n_threads)
    dweight = torch.empty(9000, 33)
    assert_rounded(dweight, add_up(row_sums(dweight), plan, 9000, 33, torch.float32))


@pytest.mark.skipif(library().functions is None, reason=library().reason or "-")
@pytest.mark.parametrize("d", [5, 16, 35])
def test_ties_go_to_even(d):
    """A sum of two halves that lies between two bfloat16 numbers; and what is not finite stays so."""
    dweight = torch.empty(4, d, dtype=torch.bfloat16)
    sums = row_sums(dweight)
    assert isinstance(sums, SparseSums)
    one = torch.tensor([1.0, 1.0078125, torch.inf, torch.nan])[:, None].expand(4, d).contiguous()
    rest = torch.tensor([2.0**-8, 2.0**-8, 1.0, 1.0])[:, None].expand(4, d).contiguous()
    for part in (one, rest):
        sums.add_rows(torch.arange(4), part)
    sums.finish(torch.zeros(4), torch.zeros(d))
    torch.testing.assert_close(dweight, (one + rest).bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert dweight[:2, 0].tolist() == [1.0, 1.015625]
