"""Faster linear layers and attention for backbones on CPUs where those of torch use half of the processor."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from cynosure.loss import is_plain
from cynosure.system.machine import cpu_vendor
from cynosure.system.upstream import onednn_linear

BLOCK = 128  # queries at a time, so that their attention scores fit in a core's cache


def fast_cpu(device: torch.device) -> AbstractContextManager[Any]:
    """Replace `F.linear` and `F.scaled_dot_product_attention` with faster versions where these exist.

    Results are equal within the rounding of the dtype. Calls with gradients and on other devices are unchanged.
    """
    return FastCpu() if device.type == "cpu" and torch_is_slow() else nullcontext()


@cache
def torch_is_slow() -> bool:
    """Whether this is AMD's AVX-512, where torch's MKL uses AVX2 and its bfloat16 attention is slower than two matmuls.

    Measured: linear layers in float32 215 -> 460 GFLOP/s on a Zen 5, 195 -> 215 on a Zen 4; attention of 9 heads over
    1024 tokens in bfloat16 12 -> 7 ms on a Zen 4. For Intel's AMX, torch has kernels.
    """
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_both and cpu_vendor() == "AuthenticAMD" and torch.backends.cpu.get_cpu_capability() == "AVX512"


class FastCpu(TorchFunctionMode):
    """Intercept torch's functions, which speeds up any model without replacing its modules."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        faster = FASTER.get(func)
        return (func if faster is None or torch.is_grad_enabled() else faster)(*args, **(kwargs or {}))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Run F.linear by oneDNN in float32. Under torch.compile it stays F.linear, which the compiler optimizes."""
    fits = input.dtype == weight.dtype == torch.float32 and input.device.type == "cpu"
    if torch.compiler.is_compiling() or not fits or not is_plain((input, weight)):
        return F.linear(input, weight, bias)
    return onednn_linear(input, weight, bias)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Run F.scaled_dot_product_attention by blocks of queries in bfloat16 if the arguments allow it."""
    if not dropout_p and can_block(query, key, value, attn_mask, is_causal):
        output: Tensor = blockwise_attention(query, key, value, attn_mask, scale or query.shape[-1] ** -0.5)
        return output
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def can_block(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    """Whether all heads have one size, and the mask is causal or the same for every head and text."""
    same = query.ndim == 4 and key.shape == value.shape and query.shape[-1] == key.shape[-1]
    if mask is None:
        shared = is_causal and query.shape[-2] == key.shape[-2]
    else:
        shared = (
            mask.ndim == 4
            and mask.dtype == torch.bool
            and all(mask.shape[i] == 1 or mask.stride(i) == 0 for i in (0, 1))
        )
    return same and shared and query.dtype == torch.bfloat16 and query.device.type == "cpu"


@torch.library.custom_op("cynosure::blockwise_attention", mutates_args=())
def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of all heads: query (B, H, T, D), key and value (B, K, S, D), mask (B or 1, H or 1, T, S) or causal.

    The scores of a block of queries are computed only for keys that at least one of them sees.
    """
    n_batch, n_heads, n_queries, size = query.shape
    n_pairs, group = n_batch * key.shape[1], n_heads // key.shape[1]  # the queries of a group share a key and value
    query = query.reshape(n_pairs, group, n_queries, size)
    key, value = (x.reshape(n_pairs, -1, size) for x in (key, value))
    unused, blocks = query.new_empty(1), []
    for block in causal_blocks(n_queries, query.device) if mask is None else blocks_of(mask[0, 0]):
        rows, keys = query[:, :, block.queries], block.keys
        scores = torch.baddbmm(unused, rows.flatten(1, 2), key[:, keys].mT, beta=0, alpha=scale)
        by_query = scores.view(n_pairs, group, -1, scores.shape[-1])
        by_query[..., block.partly].masked_fill_(block.hidden, -torch.inf)
        torch.softmax(scores, -1, out=scores)
        blocks.append(torch.bmm(scores, value[:, keys]).view(rows.shape))
    return torch.cat(blocks, 2).view(n_batch, n_heads, n_queries, size)


@blockwise_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return query.new_empty(query.shape)


class Block(NamedTuple):
    """A block of queries, the range of keys that any of them sees, and a mask of hidden keys."""

    queries: slice
    keys: slice
    partly: slice  # the range of these keys that contains all keys hidden from some queries
    hidden: Tensor  # (queries, partly) bool


def causal_blocks(n_queries: int, device: torch.device) -> Iterator[Block]:
    hidden = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=device).triu_(1)
    for start in range(0, n_queries, BLOCK):
        stop = min(start + BLOCK, n_queries)
        yield Block(slice(start, stop), slice(0, stop), slice(start, stop), hidden[: stop - start, : stop - start])


def blocks_of(seen: Tensor) -> Iterator[Block]:
    """Yield the blocks of a mask (T, S)."""
    for start in range(0, len(seen), BLOCK):
        rows = seen[start : start + BLOCK]
        first, last = ends(rows.any(0))
        rows = rows[:, first:last]
        partly = slice(*ends(~rows.all(0)))
        yield Block(slice(start, start + BLOCK), slice(first, last), partly, ~rows[:, partly])


def ends(mask: Tensor) -> tuple[int, int]:
    """Return the first true position of a mask (S,) and the one after the last; 0 and 1 if none is true."""
    places = mask.nonzero()
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 1)


FASTER: dict[Any, Callable[..., Tensor]] = {F.linear: linear, F.scaled_dot_product_attention: attention}
