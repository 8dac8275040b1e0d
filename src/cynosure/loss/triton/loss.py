"""The loss of each row, or what a piece adds to it, in one pass; its gradient, which overwrites the logits, in another.

q is the weighted, smoothed target: given for every class (dense), or at K classes beside an equal share for all.
"""

import triton
import triton.language as tl

from cynosure.loss.triton.tiles import INF, UNDERFLOW, base_of, capped, kept, load, logits, places


@triton.jit(do_not_specialize=["first"])
def loss_kernel(
    z_ptr, z_stride, n, first,  # logits (r, n) of the classes from `first` on
    dense_ptr, dense_stride, classes_ptr, probability_ptr, n_classes,  # (r, n), or (r, K) and (r, K)
    k_ptr, class_weight_ptr, counted_ptr, upstream_ptr, entropy_ptr,  # (r,), and (n,), (r,), (r,), (r,) or None
    loss_ptr, parts_ptr, scratch_ptr,  # (r,), or (4, r), of the entropy (5, r), float64 instead; (r, K) in ACC
    scale: tl.float64, softcap: tl.float64, keep: tl.float64, share: tl.float64, z_loss: tl.float64,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, ENTROPY: tl.constexpr,
    ACC: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row * z_stride
    counts, n_read = True, n
    if counted_ptr is not None:  # the sums of a row that does not count are those of none
        counts = tl.load(counted_ptr + row) != 0
        n_read = tl.where(counts, n, 0)
    if dense_ptr is not None:
        dense_ptr += row * dense_stride
    else:
        classes_ptr += row * n_classes
        probability_ptr += row * n_classes
    scale, softcap = tl.full([], scale, ACC), tl.full([], softcap, ACC)
    keep, share = tl.full([], keep, ACC), tl.full([], share, ACC)
    top, total, mass, dot, surprise = sums(
        z_ptr, n_read, dense_ptr, class_weight_ptr, scale, softcap, keep, share,
        CAPPED, SMOOTHED, ENTROPY, ACC, LANES, UNROLL,
    )  # fmt: skip
    base = base_of(top)
    if dense_ptr is None:
        for k in range(0, n_classes, CLASSES):
            _, q, z, _ = targets(
                z_ptr, n_read, first, classes_ptr, probability_ptr, n_classes, k, class_weight_ptr, scale, softcap,
                keep, CAPPED, ACC, CLASSES,
            )  # fmt: skip
            mass += tl.sum(q, 0)
            dot += tl.sum(tl.where(q == 0, 0.0, q * (z - base)), 0)
    if parts_ptr is not None:
        if counted_ptr is not None:  # together such pieces are a row whose loss is 0
            top = tl.where(counts, top, 0.0)
            total = tl.where(counts, total, tl.where(first == 0, 1.0, 0.0))
        n_rows = tl.num_programs(0)
        tl.store(parts_ptr + row, tl.where(total == total, top, total))
        tl.store(parts_ptr + n_rows + row, total)
        tl.store(parts_ptr + 2 * n_rows + row, dot)
        tl.store(parts_ptr + 3 * n_rows + row, mass)
        if ENTROPY:
            tl.store(parts_ptr + 4 * n_rows + row, surprise)
    else:
        total = tl.where(counts, tl.where(top == -INF, float("nan"), total), 1.0)
        log_s = tl.log(total)
        lse = base + log_s
        k_z_loss = tl.load(k_ptr + row).to(tl.float64) * z_loss
        loss = mass * log_s - dot + k_z_loss * lse * lse
        per_p, entropy = mass + 2 * k_z_loss * lse, 0.0
        if ENTROPY:
            entropy = tl.load(entropy_ptr + row).to(tl.float64)
            mean = surprise / total
            loss += entropy * (log_s - mean)
            per_p += entropy * mean
        tl.store(loss_ptr + row, tl.where(counts, loss, 0.0))
        if upstream_ptr is not None:
            up = tl.where(counts, tl.load(upstream_ptr + row).to(tl.float64) * scale, 0.0)
            per_exp, per_surprise = up * per_p / total, -up * entropy / total
            if dense_ptr is None:
                scratch_ptr += row * n_classes
                put_target_gradient(
                    z_ptr, n_read, first, classes_ptr, probability_ptr, n_classes, class_weight_ptr, scratch_ptr, base,
                    per_exp, per_surprise, up, scale, softcap, keep, share, CAPPED, ENTROPY, ACC, CLASSES,
                )  # fmt: skip
            tl.debug_barrier()  # the logits of the targets have been read by every thread
            put_gradient(
                z_ptr, n, counts, dense_ptr, class_weight_ptr, base, per_exp, per_surprise, up, scale, softcap, keep,
                share, CAPPED, SMOOTHED, ENTROPY, ACC, LANES, UNROLL,
            )  # fmt: skip
            if dense_ptr is None:
                tl.debug_barrier()  # what follows overwrites it
                for k in range(0, n_classes, CLASSES):
                    at = k + tl.arange(0, CLASSES)
                    c = tl.load(classes_ptr + at, mask=at < n_classes, other=-1)
                    inside = (c >= 0) & (c < n_read)
                    tl.store(z_ptr + c, tl.load(scratch_ptr + at, mask=inside, other=0.0), mask=inside)


@triton.jit
def sums(
    z_ptr, n, dense_ptr, class_weight_ptr, scale, softcap, keep, share, CAPPED: tl.constexpr, SMOOTHED: tl.constexpr,
    ENTROPY: tl.constexpr, ACC: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The largest z of a row, and sums of exp(z - base), of q, of q (z - base) and, for the entropy, of
    (z - base) exp(z - base); q without what is at K classes.

    Each lane has its own maximum, by which a tile rescales its sum once: 1 + 1 / UNROLL exponentials a logit.
    """
    top = tl.full([LANES], -INF, ACC)
    total = tl.zeros([LANES], tl.float64)
    mass, dot, surprise = total, total, total
    whole = n // (LANES * UNROLL) * (LANES * UNROLL)
    for start in range(0, whole, LANES * UNROLL):
        top, total, mass, dot, surprise = with_tile(
            top, total, mass, dot, surprise, z_ptr, places(start, LANES, UNROLL), n, dense_ptr, class_weight_ptr,
            scale, softcap, keep, share, CAPPED, SMOOTHED, ENTROPY, ACC, True,
        )  # fmt: skip
    if whole < n:
        top, total, mass, dot, surprise = with_tile(
            top, total, mass, dot, surprise, z_ptr, places(whole, LANES, UNROLL), n, dense_ptr, class_weight_ptr,
            scale, softcap, keep, share, CAPPED, SMOOTHED, ENTROPY, ACC, False,
        )  # fmt: skip
    largest = tl.max(top, 0)
    base = base_of(largest)
    dot += mass * (base_of(top) - base)
    if ENTROPY:
        surprise = moved(surprise, total, top - base)
    total *= tl.exp(top - base)
    return largest, tl.sum(total, 0), tl.sum(mass, 0), tl.sum(dot, 0), tl.sum(surprise, 0)


@triton.jit
def with_tile(
    top, total, mass, dot, surprise, z_ptr, at, n, dense_ptr, class_weight_ptr, scale, softcap, keep, share,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, ENTROPY: tl.constexpr, ACC: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The largest z and the sums of each lane, with one more tile."""
    z = logits(z_ptr, at, n, scale, softcap, CAPPED, ACC, WHOLE)
    largest = tl.maximum(top, tl.max(z, 1))
    base = base_of(largest)
    x = z - base[:, None]
    if ENTROPY:
        surprise = moved(surprise, total, top - base) + tl.sum(tl.maximum(x, UNDERFLOW) * tl.exp(x), 1)
    total = total * tl.exp(top - base) + tl.sum(tl.exp(x), 1)
    if SMOOTHED or dense_ptr is not None:
        q = weights(at, n, dense_ptr, class_weight_ptr, keep, share, ACC, WHOLE)
        dot += mass * (base_of(top) - base) + tl.sum(tl.where(q == 0, 0.0, q * x), 1)
        mass += tl.sum(q, 1)
    return largest, total, mass, dot, surprise


@triton.jit
def moved(surprise, total, shift):
    """The sum of (z - base) exp(z - base) for a base that is -shift higher."""
    shift = tl.maximum(shift, UNDERFLOW)
    return (surprise + shift * total) * tl.exp(shift)


@triton.jit
def weights(at, n, dense_ptr, class_weight_ptr, keep, share, ACC: tl.constexpr, WHOLE: tl.constexpr):
    """q at these of n classes, without what is at K classes; 0 past the end."""
    q = kept(tl.full(at.shape, 1.0, ACC) * share, at, n, 0.0, WHOLE)
    if dense_ptr is not None:
        q += load(dense_ptr, at, n, ACC, WHOLE) * keep
    if class_weight_ptr is not None:
        q *= load(class_weight_ptr, at, n, ACC, WHOLE)
    return q


@triton.jit
def targets(
    z_ptr, n, first, classes_ptr, probability_ptr, n_classes, k, class_weight_ptr, scale, softcap, keep,
    CAPPED: tl.constexpr, ACC: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The classes from the k-th on, -1 where not in this piece; their q in float64, z, and the cap's slope."""
    at = k + tl.arange(0, CLASSES)
    c = tl.load(classes_ptr + at, mask=at < n_classes, other=-1) - first
    inside = (c >= 0) & (c < n)
    q = tl.load(probability_ptr + at, mask=inside, other=0.0).to(ACC).to(tl.float64) * keep
    if class_weight_ptr is not None:
        q *= tl.load(class_weight_ptr + c, mask=inside, other=0.0)
    z, slope = capped(tl.load(z_ptr + c, mask=inside, other=0.0).to(ACC), scale, softcap, CAPPED)
    return tl.where(inside, c, -1), q, z, slope


@triton.jit
def put_target_gradient(
    z_ptr, n, first, classes_ptr, probability_ptr, n_classes, class_weight_ptr, scratch_ptr, base, per_exp,
    per_surprise, up, scale, softcap, keep, share,
    CAPPED: tl.constexpr, ENTROPY: tl.constexpr, ACC: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """d(loss)/d(logits) at the K classes, in scratch: the logits may still be read, and a class may be there twice."""
    for k in range(0, n_classes, CLASSES):
        c, q, z, slope = targets(
            z_ptr, n, first, classes_ptr, probability_ptr, n_classes, k, class_weight_ptr, scale, softcap, keep,
            CAPPED, ACC, CLASSES,
        )  # fmt: skip
        if CLASSES > 1:
            q = tl.zeros([CLASSES], tl.float64)
            for j in range(n_classes):
                q += tl.where(c == tl.load(classes_ptr + j) - first, tl.load(probability_ptr + j).to(ACC) * keep, 0.0)
            if class_weight_ptr is not None:
                q *= tl.load(class_weight_ptr + c, mask=c >= 0, other=0.0)
        q += weights(tl.maximum(c, 0), n, None, class_weight_ptr, keep, share, ACC, False)
        factor = per_exp
        if ENTROPY:
            factor += tl.maximum(z - base, UNDERFLOW) * per_surprise
        gradient = (tl.exp(z - base) * factor - up * q) * slope
        tl.store(scratch_ptr + k + tl.arange(0, CLASSES), gradient.to(ACC), mask=c >= 0)


@triton.jit
def put_gradient(
    z_ptr, n, counts, dense_ptr, class_weight_ptr, base, per_exp, per_surprise, up, scale, softcap, keep, share,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, ENTROPY: tl.constexpr,
    ACC: tl.constexpr, LANES: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """d(loss)/d(logits) over the logits themselves, right except at K classes."""
    whole = n // (LANES * UNROLL) * (LANES * UNROLL)
    for start in range(0, whole, LANES * UNROLL):
        put_gradient_of_tile(
            z_ptr, places(start, LANES, UNROLL), n, counts, dense_ptr, class_weight_ptr, base, per_exp, per_surprise,
            up, scale, softcap, keep, share, CAPPED, SMOOTHED, ENTROPY, ACC, True,
        )  # fmt: skip
    if whole < n:
        put_gradient_of_tile(
            z_ptr, places(whole, LANES, UNROLL), n, counts, dense_ptr, class_weight_ptr, base, per_exp, per_surprise,
            up, scale, softcap, keep, share, CAPPED, SMOOTHED, ENTROPY, ACC, False,
        )  # fmt: skip


@triton.jit
def put_gradient_of_tile(
    z_ptr, at, n, counts, dense_ptr, class_weight_ptr, base, per_exp, per_surprise, up, scale, softcap, keep, share,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, ENTROPY: tl.constexpr, ACC: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    z, slope = capped(load(z_ptr, at, n, ACC, WHOLE), scale, softcap, CAPPED)
    factor = per_exp.to(ACC)
    if ENTROPY:
        factor += tl.maximum(z - base, UNDERFLOW) * per_surprise.to(ACC)
    gradient = tl.exp(z - base) * factor
    if SMOOTHED or dense_ptr is not None:
        gradient -= weights(at, n, dense_ptr, class_weight_ptr, keep, share, ACC, WHOLE) * up.to(ACC)
    gradient = tl.where(counts, gradient * slope, 0.0)
    if WHOLE:
        tl.store(z_ptr + at, gradient)
    else:
        tl.store(z_ptr + at, gradient, mask=at < n)
