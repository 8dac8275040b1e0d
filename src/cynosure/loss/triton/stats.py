"""The statistics of each row, or what a piece adds to them, in one pass; its likeliest classes after it; temperatures.

The target is left out of all of it.
"""

import triton
import triton.language as tl

from cynosure.loss.triton.tiles import INF, UNDERFLOW, base_of, capped, kept, logits, places

NO_CLASS = tl.constexpr(2**31 - 1)


@triton.jit(do_not_specialize=["first", "n_best"])
def stats_kernel(
    z_ptr, z_stride, n, first,  # logits (r, n) of the classes from `first` on
    index_ptr, target_logit_ptr,  # (r,), (r,)
    sums_ptr, above_ptr, best_ptr, ids_ptr, n_best,  # (4, r) float64, (r,), (r, n_best) float64 and int64
    scale: tl.float64, softcap: tl.float64,
    CAPPED: tl.constexpr, ACC: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    n_rows = tl.num_programs(0)
    z_ptr += row * z_stride
    scale, softcap = tl.full([], scale, ACC), tl.full([], softcap, ACC)
    target = place_in_piece(tl.load(index_ptr + row), first, n)
    target_z, _ = capped(tl.load(target_logit_ptr + row).to(ACC), scale, softcap, CAPPED)
    top, found, above, exp, square, surprise = sums(
        z_ptr, n, target, target_z, scale, softcap, CAPPED, ACC, LANES, UNROLL
    )
    tl.store(sums_ptr + row, target_z)
    tl.store(sums_ptr + n_rows + row, exp)
    tl.store(sums_ptr + 2 * n_rows + row, square)
    tl.store(sums_ptr + 3 * n_rows + row, surprise)
    tl.store(above_ptr + row, above)
    best_ptr += row * n_best
    ids_ptr += row * n_best
    for j in range(n_best):
        best = tl.max(top, 0)
        at = tl.min(tl.where(top == best, found, NO_CLASS), 0)
        tl.store(best_ptr + j, logits(z_ptr, at, n, scale, softcap, CAPPED, ACC, False))
        tl.store(ids_ptr + j, tl.where(at < n, at + first, -1).to(tl.int64))
        lane = at % (LANES * UNROLL) // UNROLL
        next_top, next_found = after(z_ptr, n, target, best, at, lane, scale, softcap, CAPPED, ACC, LANES, UNROLL)
        is_lane = tl.arange(0, LANES) == lane
        top, found = tl.where(is_lane, next_top, top), tl.where(is_lane, next_found, found)


@triton.jit
def sums(
    z_ptr, n, target, target_z, scale, softcap,
    CAPPED: tl.constexpr, ACC: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Of each lane its best key and the class that has it; of the row how many z are above the target's, and the sums
    of e = exp(z - base), of e^2 and of (z - base) e.
    """
    top, found = tl.full([LANES], -INF, ACC), tl.full([LANES], NO_CLASS, tl.int32)
    above = tl.zeros([LANES], tl.int32)
    exp = tl.zeros([LANES], tl.float64)
    square, surprise = exp, exp
    whole = n // (LANES * UNROLL) * (LANES * UNROLL)
    for start in range(0, whole, LANES * UNROLL):
        top, found, above, exp, square, surprise = with_tile(
            top, found, above, exp, square, surprise, z_ptr, start, n, target, target_z, scale, softcap,
            CAPPED, ACC, LANES, UNROLL, True,
        )  # fmt: skip
    if whole < n:
        top, found, above, exp, square, surprise = with_tile(
            top, found, above, exp, square, surprise, z_ptr, whole, n, target, target_z, scale, softcap,
            CAPPED, ACC, LANES, UNROLL, False,
        )  # fmt: skip
    exp, square, surprise = moved(exp, square, surprise, top - base_of(tl.max(top, 0)))
    return top, found, tl.sum(above, 0), tl.sum(exp, 0), tl.sum(square, 0), tl.sum(surprise, 0)


@triton.jit
def with_tile(
    top, found, above, exp, square, surprise, z_ptr, start, n, target, target_z, scale, softcap,
    CAPPED: tl.constexpr, ACC: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The same with one more tile."""
    at = places(start, LANES, UNROLL)
    z = tl.where(at == target, -INF, logits(z_ptr, at, n, scale, softcap, CAPPED, ACC, WHOLE))
    above += tl.sum((z > target_z).to(tl.int32), 1)
    best, place = tl.max(key(z, at, n, target, ACC, WHOLE), 1, return_indices=True)
    found = tl.where(best > top, start + tl.arange(0, LANES) * UNROLL + place, found)
    largest = tl.maximum(top, best)
    exp, square, surprise = moved(exp, square, surprise, top - base_of(largest))
    x = z - base_of(largest)[:, None]
    e = tl.exp(x)
    exp += tl.sum(e, 1)
    square += tl.sum(e * e, 1)
    surprise += tl.sum(tl.maximum(x, UNDERFLOW) * e, 1)
    return largest, found, above, exp, square, surprise


@triton.jit
def place_in_piece(index, first, n):
    """Where a class is in a piece of n classes from `first` on; -1 if it is in another."""
    at = index - first
    return tl.where((at >= 0) & (at < n), at, -1).to(tl.int32)


@triton.jit
def key(z, at, n, target, ACC: tl.constexpr, WHOLE: tl.constexpr):
    """What decides which class is better: z, but NaN is infinite, and impossible classes are above those left out."""
    LOWEST: tl.constexpr = -3.4028234663852886e38 if ACC is tl.float32 else -1.7976931348623157e308
    keys = tl.where(z == z, tl.maximum(z, LOWEST), INF)
    return tl.where(at == target, -INF, kept(keys, at, n, -INF, WHOLE))


@triton.jit
def moved(exp, square, surprise, shift):
    """The sums relative to a base that is -shift higher."""
    shift = tl.maximum(shift, UNDERFLOW)
    by = tl.exp(shift).to(tl.float64)
    return exp * by, square * by * by, (surprise + shift * exp) * by


@triton.jit
def after(
    z_ptr, n, target, best, best_at, lane, scale, softcap,
    CAPPED: tl.constexpr, ACC: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The key that comes next in this lane, and its class."""
    top, found = tl.full([], -INF, ACC), tl.full([], NO_CLASS, tl.int32)
    for tile in range(0, tl.cdiv(n, LANES * UNROLL), LANES):
        tiles = tile + tl.arange(0, LANES)
        at = tiles[:, None] * (LANES * UNROLL) + lane * UNROLL + tl.arange(0, UNROLL)[None, :]
        keys = key(logits(z_ptr, at, n, scale, softcap, CAPPED, ACC, False), at, n, target, ACC, False)
        keys = tl.where((keys < best) | (keys == best) & (at > best_at), keys, -INF)
        largest = tl.max(tl.max(keys, 1), 0)
        first = tl.min(tl.min(tl.where((keys == largest) & (keys > -INF), at, NO_CLASS), 1), 0)
        found = tl.where(largest > top, first, found)
        top = tl.maximum(top, largest)
    return top, found


@triton.jit(do_not_specialize=["first", "n_best", "n_beta"])
def tempered_kernel(
    z_ptr, z_stride, n, first, index_ptr, best_ptr, n_best, beta_ptr, n_beta, tempered_ptr,  # (r, n_best), (B,), (r, B)
    scale: tl.float64, softcap: tl.float64,
    CAPPED: tl.constexpr, ACC: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Sums of exp(beta (z - base)): a program takes one beta of a row; those of a row run together, for the cache."""
    row, b = (tl.program_id(0) // n_beta).to(tl.int64), tl.program_id(0) % n_beta
    z_ptr += row * z_stride
    scale, softcap = tl.full([], scale, ACC), tl.full([], softcap, ACC)
    target = place_in_piece(tl.load(index_ptr + row), first, n)
    base = base_of(tl.load(best_ptr + row * n_best).to(ACC))
    beta = tl.load(beta_ptr + b).to(ACC)
    total = tl.zeros([LANES], tl.float64)
    whole = n // (LANES * UNROLL) * (LANES * UNROLL)
    for start in range(0, whole, LANES * UNROLL):
        at = places(start, LANES, UNROLL)
        z = tl.where(at == target, -INF, logits(z_ptr, at, n, scale, softcap, CAPPED, ACC, True))
        total += tl.sum(tl.exp((z - base) * beta), 1)
    if whole < n:
        at = places(whole, LANES, UNROLL)
        z = tl.where(at == target, -INF, logits(z_ptr, at, n, scale, softcap, CAPPED, ACC, False))
        total += tl.sum(tl.exp((z - base) * beta), 1)
    tl.store(tempered_ptr + row * n_beta + b, tl.sum(total, 0))
