"""The student's log-probabilities of several classes of each token, differentiably."""

import torch
from torch import Tensor

from cynosure.loss.functional import linear_cross_entropy


def student_logprobs(
    hidden: Tensor, weight: Tensor, ids: Tensor, *, bias: Tensor | None, softcap: float | None, scale: float,
    chunk_tokens: int | None,
) -> Tensor:  # fmt: skip
    """Return log p (n, K) of the classes ids (n, K) under hidden (n, D), one loss for each of the K columns."""
    one = torch.ones(len(ids), 1, dtype=torch.float32, device=ids.device)
    columns = [
        linear_cross_entropy(
            hidden, weight, (column[:, None], one), bias=bias, softcap=softcap, scale=scale, reduction="none",
            chunk_tokens=chunk_tokens,
        )
        for column in ids.unbind(-1)
    ]  # fmt: skip
    return -torch.stack(columns, -1)
