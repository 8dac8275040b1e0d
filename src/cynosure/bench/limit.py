"""The limit: the three matrix products that any exact loss makes, and nothing around them.

logits (N, V) = h w^T, dhidden (N, D) = logits w, dweight (V, D) = logits^T h; the numbers mean nothing, the work does.
"""

import torch

from cynosure.bench.contestants import Inputs, Outputs
from cynosure.loss import explain


def whole_gemms(inputs: Inputs) -> Outputs:
    """All rows at once."""
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    logits = hidden @ weight.t()
    return Outputs(logits[0, 0], logits @ weight, logits.t() @ hidden)


def chunked_gemms(inputs: Inputs) -> Outputs:
    """As many rows at a time as our loss takes, through one reused buffer; dW is added up inside the product."""
    hidden, weight = inputs.hidden.detach(), inputs.weight.detach()
    n_rows = explain(len(hidden), hidden.shape[1], len(weight), dtype=hidden.dtype).chunk_tokens
    buffer = hidden.new_empty(n_rows, len(weight))
    dhidden, dweight = torch.empty_like(hidden), torch.empty_like(weight)
    for start in range(0, len(hidden), n_rows):
        h = hidden[start : start + n_rows]
        logits = torch.mm(h, weight.t(), out=buffer[: len(h)])
        torch.mm(logits, weight, out=dhidden[start : start + n_rows])
        if start == 0:
            torch.mm(logits.t(), h, out=dweight)
        else:
            dweight.addmm_(logits.t(), h)
    return Outputs(buffer[0, 0], dhidden, dweight)
