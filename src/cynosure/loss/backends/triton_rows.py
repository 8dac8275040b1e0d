"""The row kernels in Triton, for CUDA and ROCm devices: they read logits of any dtype where they lie.

Its kernels are in `loss/triton`, which is imported when the first of them runs: until then nothing needs triton.
"""

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from cynosure.loss.backends.registry import register
from cynosure.loss.backends.torch_rows import TorchRows, column_sums, row_squares, take_columns
from cynosure.loss.options import RowOptions, accumulation_dtype
from cynosure.loss.pieces import Best, LossPart, Piece, StatsPart
from cynosure.loss.targets import TargetRows

LEAST_CAPABILITY = (8, 0)  # of an NVIDIA GPU for this Triton


class TritonRows:
    """The kernels as a backend."""

    name, priority, in_place = "triton", 5, True
    about = "Triton, compiled for the GPU when it first runs"
    sizes = TorchRows.sizes
    column_sums, take_columns = staticmethod(column_sums), staticmethod(take_columns)
    row_squares = staticmethod(row_squares)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot run on this device; None where it can."""
        return reason(device.type, device.index, os.environ.get("TRITON_INTERPRET") == "1")

    def loss_rows(self, z: Tensor, target: TargetRows, options: RowOptions, upstream: Tensor | None = None) -> Tensor:
        """Loss (r,) of each row; with upstream (r,), z becomes upstream * d(loss)/d(logits)."""
        loss = torch.empty(len(z), dtype=accumulation_dtype(z.dtype), device=z.device)
        kernels().run_loss(z, Piece(0, z.shape[-1]), target, options, upstream, loss, None)
        return loss

    def loss_piece(self, z: Tensor, piece: Piece, target: TargetRows, options: RowOptions) -> LossPart:
        """What a piece of r rows adds to their loss."""
        n_sums = 4 if target.entropy is None else 5
        parts = torch.empty(n_sums, len(z), dtype=torch.float64, device=z.device)
        kernels().run_loss(z, piece, target, options, None, None, parts)
        return LossPart(*parts)

    def stats_piece(
        self, z: Tensor, piece: Piece, index: Tensor, target_logit: Tensor, options: RowOptions, best: Best,
        beta: Sequence[float],
    ) -> StatsPart:  # fmt: skip
        """What a piece of r rows adds to their statistics; updates `best`."""
        topk = best.z.shape[-1]
        part: StatsPart
        part, found = kernels().run_stats(z, piece, index, target_logit, options, max(2, topk), beta)
        if topk:
            kept = best.with_others(found.z[:, :topk], found.ids[:, :topk])
            best.z.copy_(kept.z)
            best.ids.copy_(kept.ids)
        return part


@cache
def reason(device: str, index: int | None, is_interpreted: bool) -> str | None:
    """Why the kernels cannot run on a device; None where they can."""
    if device != "cuda" and not (device == "cpu" and is_interpreted):
        return f"it needs a CUDA or ROCm device, the tensors are on {device}"
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if device == "cuda" and torch.cuda.is_available() and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(index)
        if capability < LEAST_CAPABILITY:
            return "it needs compute capability {}.{}, this GPU has {}.{}".format(*LEAST_CAPABILITY, *capability)
    return None


def kernels() -> ModuleType:
    """The module that launches them."""
    from cynosure.loss.triton import launch

    return launch


register(TritonRows())
