"""What the kernels do with a tile of logits, whichever sums they take.

A program takes a row; a tile is (LANES, UNROLL) of its logits; a thread reads the UNROLL of a lane at once, 16 bytes.
Inside a tile everything is in ACC: float32, or float64 for logits in float64. Sums over tiles are float64.
"""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
UNDERFLOW = tl.constexpr(-1e4)  # exp of it is 0 in every dtype, while 0 * it is 0 and not NaN as 0 * -inf would be


@triton.jit
def places(start, LANES: tl.constexpr, UNROLL: tl.constexpr):
    """The classes (LANES, UNROLL) of the tile that begins at `start`."""
    return start + tl.arange(0, LANES)[:, None] * UNROLL + tl.arange(0, UNROLL)[None, :]


@triton.jit
def tanh(x):
    """To about one unit in the last place, small x included. Coefficients of Cephes, which suffice for float64."""
    s = x * x
    p = (-9.64399179425052238628e-1 * s - 9.92877231001918586564e1) * s - 1.61468768441708447952e3
    q = ((s + 1.12811678491632931402e2) * s + 2.23548839060100448583e3) * s + 4.84406305325125486048e3
    e = tl.exp(-2 * tl.abs(x))
    small = s < 0.390625
    ratio = tl.where(small, x * s * p, tl.where(x < 0, e - 1, 1 - e)) / tl.where(small, q, 1 + e)
    return tl.where(small, x + ratio, ratio)


@triton.jit
def capped(z, scale, softcap, CAPPED: tl.constexpr):
    """Scaled and capped logits, and the slope of the cap."""
    z, slope = z * scale, 1.0
    if CAPPED:
        t = tanh(z * (1 / softcap))
        z, slope = t * softcap, 1 - t * t
    return z, slope


@triton.jit
def load(row_ptr, at, n, ACC: tl.constexpr, WHOLE: tl.constexpr):
    """What is at these places of a row of n; 0 past its end, which no WHOLE tile reaches.

    No other mask is asked for: 16 bytes are read at once only where a mask is the same for all of them.
    """
    x = tl.load(row_ptr + at) if WHOLE else tl.load(row_ptr + at, mask=at < n, other=0.0)
    return x.to(ACC)


@triton.jit
def kept(x, at, n, otherwise, WHOLE: tl.constexpr):
    """x, but otherwise past the end of a row of n."""
    if not WHOLE:
        x = tl.where(at < n, x, otherwise)
    return x


@triton.jit
def logits(z_ptr, at, n, scale, softcap, CAPPED: tl.constexpr, ACC: tl.constexpr, WHOLE: tl.constexpr):
    """The logits at these of a row's n classes, scaled and capped; minus infinity past its end."""
    z, _ = capped(load(z_ptr, at, n, ACC, WHOLE), scale, softcap, CAPPED)
    return kept(z, at, n, -INF, WHOLE)


@triton.jit
def base_of(top):
    """What exponentials are relative to: the largest logit, or 0 where that is minus infinity."""
    return tl.where(top == -INF, 0.0, top)
