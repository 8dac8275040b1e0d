"""Runs the kernels on tensors. Importing it imports triton."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cynosure.loss.options import RowOptions, accumulation_dtype
from cynosure.loss.pieces import Best, Piece, StatsPart
from cynosure.loss.targets import TargetRows
from cynosure.loss.triton.loss import loss_kernel
from cynosure.loss.triton.stats import stats_kernel, tempered_kernel

READ = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MOST_LANES = 512
MOST_CLASSES = 1024


def device_of(z: Tensor) -> torch.cuda.device_of:
    """Makes z's device the current one, on which Triton runs a kernel; does nothing on a CPU."""
    return torch.cuda.device_of(z)  # type: ignore[no-untyped-call]


def tiling(z: Tensor) -> dict[str, Any]:
    """How a row of these logits is cut into tiles, and how many threads take one."""
    unroll = 16 // z.itemsize
    lanes = min(MOST_LANES, max(32, triton.next_power_of_2(triton.cdiv(z.shape[-1], unroll))))
    acc = tl.float64 if z.dtype == torch.float64 else tl.float32
    return {"ACC": acc, "LANES": lanes, "UNROLL": unroll, "num_warps": max(1, lanes // 64)}


def run_loss(
    z: Tensor, piece: Piece, target: TargetRows, options: RowOptions, upstream: Tensor | None, loss: Tensor | None,
    parts: Tensor | None,
) -> None:  # fmt: skip
    """Fill loss (r,), or parts (4, r), or (5, r); with upstream (r,), z becomes upstream * d(loss)/d(logits)."""
    n_rows, n = z.shape
    classes, probability, scratch, n_classes = target.classes, target.probability, None, 1
    if probability.dtype not in READ:
        probability = probability.to(target.k.dtype)
    if classes is not None:
        classes, probability, n_classes = classes.contiguous(), probability.contiguous(), classes.shape[-1]
        if upstream is not None:
            scratch = torch.empty(classes.shape, dtype=accumulation_dtype(z.dtype), device=z.device)
    elif probability.stride(-1) != 1:
        probability = probability.contiguous()
    class_weight = options.class_weight
    if class_weight is not None:
        class_weight = class_weight[piece.first : piece.first + n].contiguous()
    dense = classes is None
    counted = None if target.counted is None else target.counted.contiguous()
    with device_of(z):
        loss_kernel[(n_rows,)](
            z, z.stride(0), n, piece.first,
            probability if dense else None, probability.stride(0) if dense else 0, classes,
            None if dense else probability, n_classes,
            target.k.contiguous(), class_weight, counted, None if upstream is None else upstream.contiguous(),
            None if target.entropy is None else target.entropy.contiguous(),
            loss, parts, scratch, options.scale, options.softcap or 0.0, 1 - options.label_smoothing,
            options.label_smoothing / piece.vocab_size, options.z_loss,
            CAPPED=options.softcap is not None, SMOOTHED=options.label_smoothing != 0,
            ENTROPY=target.entropy is not None,
            CLASSES=min(MOST_CLASSES, triton.next_power_of_2(n_classes)), **tiling(z),
        )  # fmt: skip


def run_stats(
    z: Tensor,
    piece: Piece,
    index: Tensor,
    target_logit: Tensor,
    options: RowOptions,
    n_best: int,
    beta: Sequence[float],
) -> tuple[StatsPart, Best]:
    """What a piece (r, v) adds to the statistics, and its n_best likeliest classes."""
    (n_rows, n), n_beta = z.shape, len(beta)
    n_best = max(2, min(n_best, n))  # two for the margin; a piece may have fewer than are asked for
    new = partial(torch.empty, device=z.device)
    sums, above = new(4, n_rows, dtype=torch.float64), new(n_rows, dtype=torch.int64)
    best = Best(new(n_rows, n_best, dtype=torch.float64), new(n_rows, n_best, dtype=torch.int64))
    tempered, betas = new(n_rows, n_beta, dtype=torch.float64), new(n_beta, dtype=torch.float64)
    for i, b in enumerate(beta):
        betas[i].fill_(b)  # by a kernel, since a copy from the host would wait for it
    index, target_logit = index.contiguous(), target_logit.contiguous()
    how = {"CAPPED": options.softcap is not None, **tiling(z)}
    head = options.scale, options.softcap or 0.0
    with device_of(z):
        stats_kernel[(n_rows,)](
            z, z.stride(0), n, piece.first, index, target_logit, sums, above, best.z, best.ids, n_best, *head, **how
        )
        if beta:
            tempered_kernel[(n_rows * n_beta,)](
                z, z.stride(0), n, piece.first, index, best.z, n_best, betas, n_beta, tempered, *head, **how
            )
    target_z, exp, square, surprise = sums
    part = StatsPart(
        target_z, best.z[:, 0], best.z[:, 1], exp, square, surprise, tempered.t(), above,
        best.ids[:, 0].clamp(min=piece.first),  # of no class but the target's, the first as in torch
    )  # fmt: skip
    return part, best
