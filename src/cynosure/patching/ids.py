"""Check that a model has an embedding for every token id."""

from typing import Any

from torch import Tensor


def embedding_rows(model: Any) -> int | None:
    """Return the number of ids that a transformers model has an embedding for; None if it is unknown."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except (AttributeError, NotImplementedError):
        return None
    return weight.shape[0] if isinstance(weight, Tensor) and weight.ndim == 2 else None


def check_ids(ids: Tensor, n_rows: int | None, name: str, tokenizer: Any = None) -> None:
    """Raise ValueError for the first id outside [0, n_rows). n_rows of None skips the check.

    >>> import torch
    >>> check_ids(torch.tensor([[5, 600]]), 600, "tiny")
    Traceback (most recent call last):
    ValueError: token 600 is beyond tiny, which has 600 (ids 0 to 599): use the tokenizer it was trained with, or ...
    """
    if n_rows is None or not len(wrong := ids[(ids < 0) | (ids >= n_rows)]):
        return
    id_ = int(wrong[0])
    text = tokenizer.convert_ids_to_tokens(id_) if tokenizer is not None and id_ >= 0 else None
    raise ValueError(
        f"token {id_}{f' ({text!r})' if text else ''} is beyond {name}, which has {n_rows:,} (ids 0 to {n_rows - 1}): "
        "use the tokenizer it was trained with, or model.resize_token_embeddings(len(tokenizer)) and train the new rows"
    )
