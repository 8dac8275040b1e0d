"""The next-token loss of a transformers model that is not patched."""

from typing import Any

from torch import Tensor

from cynosure.patching.find import find_causal_lm
from cynosure.patching.ids import check_ids, embedding_rows
from cynosure.patching.labelled import IGNORED
from cynosure.patching.model import Patch


def causal_lm_loss(
    model: Any,
    input_ids: Tensor,
    labels: Tensor | None = None,
    attention_mask: Tensor | None = None,
    normalizer: float | Tensor | None = None,
    **model_inputs: Any,
) -> Tensor:
    """The next-token loss of a transformers model, without its logits: nats, a 0-d tensor with a graph.

    `input_ids` (B, T); `labels` (B, T) are by default these, ignored where `attention_mask` is 0; -100 is ignored. The
    mean over the tokens that are not, or the sum divided by `normalizer`, the number of them in a whole accumulated or
    distributed batch. `model_inputs` go to the model. Errors as of `patch`, which is in place during the call unless it
    has been before; ValueError for ids that the model has no embedding of.

    >>> import torch
    >>> from tests.tiny import tiny_model
    >>> ids = torch.arange(12)[None]
    >>> round(causal_lm_loss(tiny_model(spread=0.0), ids).item(), 4)  # ln 300
    5.7038
    """
    if labels is None:
        labels = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, IGNORED)
    given = model_inputs | {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
    if normalizer is not None:
        given["num_items_in_batch"] = normalizer
    inner = find_causal_lm(model)
    check_ids(input_ids, embedding_rows(inner), f"the embedding of {type(inner).__name__}")
    with Patch.on(model):
        found: Tensor = model(**given).loss
    return found
