"""What a backend computes of columns of d(logits) and of rows of a weight, held to float64."""

import math

import pytest
import torch

from cynosure.loss.backends.registry import choose_backend
from cynosure.loss.options import accumulation_dtype

pytestmark = [pytest.mark.cpu_only, pytest.mark.usefixtures("poison_empty")]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = [(1, 1), (1, 33), (5, 1), (3, 7), (4, 64), (9, 129), (33, 2049), (6, 4200)]
THREADS = [1, 2]


def rows(n, width, dtype, strided, seed=0):
    """Numbers of many magnitudes, in rows that may be apart in memory."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator, dtype=torch.float64)
    x = x * torch.rand(n, width, generator=generator, dtype=torch.float64) ** 4
    kept = (
        torch.full((n, width + 5), math.nan, dtype=dtype)[:, 3 : 3 + width]
        if strided
        else torch.empty(n, width, dtype=dtype)
    )
    return kept.copy_(x)


def assert_sum(ours, terms, dtype):
    """A sum over the first axis, whose roundings add up as independent ones do."""
    assert ours.dtype == accumulation_dtype(dtype)
    exact, size = terms.sum(0), terms.abs().sum(0)
    assert ours.shape == exact.shape
    eps = torch.finfo(ours.dtype).eps * max(4, len(terms)) ** 0.5
    assert bool(((ours.double() - exact).abs() <= eps * size).all())


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_column_sums(dtype, shape, strided, backend):
    d, kernel = rows(*shape, dtype, strided), choose_backend(backend)[0]
    wide = accumulation_dtype(dtype)
    weight, along = rows(2, shape[0], wide, False, seed=1)
    weight = weight.abs()
    for n_threads in THREADS:
        torch.set_num_threads(n_threads)
        sums, x = kernel.column_sums(d, weight, along), d.double()
        assert_sum(sums.squares, x**2, dtype)
        assert_sum(sums.weighed, x**2 * weight.double()[:, None], dtype)
        assert_sum(sums.projected, x * along.double()[:, None], dtype)
        alone = kernel.column_sums(d, None, None)
        assert_sum(alone.squares, x**2, dtype)
        assert alone.weighed.numel() == alone.projected.numel() == 0


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_take_columns(dtype, shape, strided, backend):
    """Each product is rounded once, to nearest, ties to even."""
    d, kernel = rows(*shape, dtype, strided), choose_backend(backend)[0]
    chosen = {"some": torch.arange(0, shape[1], 3), "all": torch.arange(shape[1]), "none": torch.arange(0)}
    for ids in chosen.values():
        factor = 1 + 4095 * rows(1, len(ids), accumulation_dtype(dtype), False, seed=2)[0].abs()
        taken = kernel.take_columns(d, ids, factor)
        assert taken.dtype == dtype
        assert torch.equal(taken, (d[:, ids].to(factor.dtype) * factor).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_that_are_not_finite_stay_so(dtype, backend):
    d = torch.tensor([[1.0, math.nan, math.inf, -math.inf, 0.0]], dtype=dtype)
    factor = torch.full((5,), 3.0, dtype=accumulation_dtype(dtype))
    kernel = choose_backend(backend)[0]
    torch.testing.assert_close(kernel.take_columns(d, torch.arange(5), factor), d * 3, equal_nan=True)
    sums = kernel.column_sums(d, torch.ones_like(factor[:1]), torch.ones_like(factor[:1]))
    for found, exact in zip(sums, (d.to(factor.dtype) ** 2, d.to(factor.dtype) ** 2, d.to(factor.dtype)), strict=True):
        torch.testing.assert_close(found, exact[0], equal_nan=True)


def test_every_half_is_rounded_to_nearest(backend):
    """All bfloat16 numbers, NaN and infinity too, times some factors."""
    d = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)[None]
    kernel = choose_backend(backend)[0]
    for factor in (1.0, 1.00390625, 1.3333334, 4095.9, 1 + 2**-8):
        factors = torch.full((d.shape[1],), factor)
        taken = kernel.take_columns(d, torch.arange(d.shape[1]), factors)
        torch.testing.assert_close(taken, (d.float() * factors).bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_squares(dtype, shape, layout, backend):
    x = rows(*shape, dtype, layout == "strided")
    x = x.t().contiguous().t() if layout == "transposed" else x
    assert_sum(choose_backend(backend)[0].row_squares(x), x.double().t() ** 2, dtype)


def test_row_squares_of_many_rows(backend):
    x = rows(5000, 40, torch.bfloat16, False)
    for n_threads in THREADS:
        torch.set_num_threads(n_threads)
        assert_sum(choose_backend(backend)[0].row_squares(x), x.double().t() ** 2, x.dtype)
