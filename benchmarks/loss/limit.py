"""The limit: the matmuls that any exact loss makes, and nothing around them.

logits (N, V) = h w^T, dhidden (N, D) = logits w, dweight (V, D) = logits^T h; the numbers mean nothing, the work does.
Where the forward alone is measured, the first of them.
"""

import torch

from benchmarks.loss.implementations import Inputs, Outputs
from cynosure.loss import explain
from cynosure.loss.linear import matmul
from cynosure.loss.plan import Plan


def plan_of(inputs: Inputs) -> Plan:
    """What our loss would do with them."""
    (n_tokens, hidden_size), vocab_size = inputs.hidden.shape, len(inputs.weight)
    dtype = inputs.hidden.dtype
    device = inputs.hidden.device
    return explain(n_tokens, hidden_size, vocab_size, dtype=dtype, device=device, requires_grad=inputs.backward)


def best_provider(inputs: Inputs) -> str:
    """In float32 whoever a trial shows to be fastest; half precision is torch's here: our own is part of our loss."""
    return plan_of(inputs).gemm.provider if inputs.hidden.dtype == torch.float32 else "torch"


def whole_gemms(inputs: Inputs, provider: str) -> Outputs:
    """All rows at once."""
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    logits = matmul(hidden, weight.t(), hidden.new_empty(len(hidden), len(weight)), provider=provider)
    if not inputs.backward:
        return Outputs(logits[0, 0])
    dhidden = matmul(logits, weight, torch.empty_like(hidden), provider=provider)
    return Outputs(logits[0, 0], dhidden, matmul(logits.t(), hidden, torch.empty_like(weight), provider=provider))


def chunked_gemms(inputs: Inputs, provider: str) -> Outputs:
    """As much at a time as our loss takes, through one reused buffer; dW is added up inside the product."""
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    plan = plan_of(inputs)
    n_rows, n_columns = plan.chunk_tokens, plan.chunk_vocab
    buffer = hidden.new_empty(n_rows * n_columns)
    dhidden, dweight = (torch.empty_like(x) if inputs.backward else None for x in (hidden, weight))
    for start in range(0, len(hidden), n_rows):
        h = hidden[start : start + n_rows]
        for first in range(0, len(weight), n_columns):
            w = weight[first : first + n_columns]
            logits = matmul(h, w.t(), buffer[: len(h) * len(w)].view(len(h), len(w)), provider=provider)
        if dhidden is not None and dweight is not None:
            matmul(logits, weight, dhidden[start : start + n_rows], provider=provider)
            matmul(logits.t(), h, dweight, add=start > 0, provider=provider)
    return Outputs(buffer[0], dhidden, dweight)
