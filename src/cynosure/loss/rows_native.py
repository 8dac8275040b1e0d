"""The row kernel in C++: the same two functions as `rows_torch`, for rows in a CPU's memory.

One call takes a whole chunk, its rows shared out among as many threads as torch uses.
"""

import ctypes

import torch
from torch import Tensor

from cynosure.loss.native.library import INSTRUCTIONS, STORED, Logits, LossRows, StatsRows, library
from cynosure.loss.options import RowOptions, accumulation_dtype
from cynosure.loss.rows_torch import StatsRows as Figures
from cynosure.loss.targets import TargetRows

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class NativeRows:
    """The kernel with one of the instruction sets."""

    def __init__(self, instructions: str) -> None:
        self.instructions = INSTRUCTIONS.index(instructions)

    def loss_rows(self, z: Tensor, target: TargetRows, options: RowOptions, upstream: Tensor | None = None) -> Tensor:
        """Loss (r,) of each row; with upstream (r,), z becomes upstream * d(loss)/d(logits)."""
        loss = torch.empty(len(z), dtype=accumulation_dtype(z.dtype))
        classes, probability = contiguous(target.classes), target.probability
        if probability.stride(-1) != 1:
            probability = probability.contiguous()
        k, upstream, class_weight = contiguous(target.k), contiguous(upstream), contiguous(options.class_weight)
        call = LossRows(
            self.logits(z, options), pointer(classes), pointer(probability), probability.shape[-1],
            probability.stride(0), pointer(k), pointer(class_weight), pointer(upstream), options.label_smoothing,
            options.z_loss, pointer(loss),
        )  # fmt: skip
        functions().cynosure_loss_rows(ctypes.byref(call))
        return loss

    def stats_rows(
        self, z: Tensor, index: Tensor, options: RowOptions, topk: int, temperatures: list[float]
    ) -> Figures:
        """Every figure of each row of z (r, V) for its target index (r,)."""
        beta, order = torch.tensor([1 / t for t in temperatures], dtype=torch.float64).sort()
        shapes = {"top_ids": (topk,), "top_logprobs": (topk,), "nll_at_temperature": (len(beta),)}
        figures = Figures(
            **{
                name: torch.empty(
                    len(z),
                    *shapes.get(name, ()),
                    dtype=torch.int64 if name in ("rank", "argmax", "top_ids") else accumulation_dtype(z.dtype),
                )
                for name in Figures._fields
            }
        )
        index = index.contiguous()
        call = StatsRows(
            self.logits(z, options), pointer(index), pointer(beta), topk, len(beta), equal_steps(beta),
            **{name: pointer(x) for name, x in figures._asdict().items()},
        )  # fmt: skip
        functions().cynosure_stats_rows(ctypes.byref(call))
        return figures._replace(nll_at_temperature=figures.nll_at_temperature[:, order.argsort()])

    def logits(self, z: Tensor, options: RowOptions) -> Logits:
        """z (r, V), rows contiguous, as the library reads it."""
        assert z.stride(-1) == 1 or z.shape[-1] == 1
        return Logits(
            z.data_ptr(), STORED[str(z.dtype).removeprefix("torch.")], z.shape[0], z.shape[1], z.stride(0),
            options.scale, options.softcap or 0.0, self.instructions, torch.get_num_threads(),
        )  # fmt: skip


def functions() -> ctypes.CDLL:
    found = library()
    assert found.functions is not None, found.reason
    return found.functions


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def equal_steps(beta: Tensor) -> bool:
    """Whether ascending beta are an arithmetic series, to the rounding of 1 / temperature."""
    steps = beta.diff()
    return len(beta) > 2 and bool((steps - steps[0]).abs().max() <= 1e-12 * beta[-1])
