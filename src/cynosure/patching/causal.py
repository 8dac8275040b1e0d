"""Compute the next-token loss of a transformers model that is not patched."""

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
    """Compute the next-token loss of a transformers model without materializing its logits.

    An unpatched model is patched for the duration of the call.

    Args:
        model: a causal language model of transformers.
        input_ids: (B, T) token ids.
        labels: (B, T); -100 is ignored. None: the ids, ignored where `attention_mask` is 0.
        attention_mask: (B, T), 0 for padding.
        normalizer: number of tokens of a whole accumulated or distributed batch, by which the summed loss is divided.
            None: the loss is the mean over the tokens that are not ignored.
        model_inputs: further arguments of the model.

    Returns:
        The loss in nats, a 0-d tensor with a graph.

    Raises:
        ValueError: the model has no embedding of an id, or `patch` refuses the model.
        TypeError: the model is not a language model of transformers.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model, ids = LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)), torch.arange(12)[None]
        >>> _ = model.lm_head.weight.data.zero_()
        >>> round(causal_lm_loss(model, ids).item(), 4)  # ln 300
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
        loss: Tensor = model(**given).loss
    return loss
