"""Let DistributedDataParallel see which parameters deferred logits depend on.

It searches the graph of a forward's outputs, and takes parameters that it does not reach for unused ones. A stand-in
for logits has no graph: its loss, outside of the forward, is computed from hidden states and weights.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from cynosure.system.upstream import without_torch_function


class Reached(Function):
    """A graph from a stand-in to the operands of its recipe, which is searched but has no backward."""

    @staticmethod
    def forward(ctx: Any, stand_in: Tensor, *operands: Tensor | None) -> Tensor:
        ctx.mark_dirty(stand_in)
        return stand_in

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        raise RuntimeError("the backward reached deferred logits: this is a bug in cynosure, please report it")


def reach(stand_in: Any) -> None:
    """Give a stand-in such a graph; what is derived from it gets one too."""
    stand_in.is_reached = True
    if stand_in.with_graph and stand_in.recipe.requires_grad:
        with without_torch_function():
            Reached.apply(stand_in, *stand_in.recipe.operands)  # type: ignore[no-untyped-call]
