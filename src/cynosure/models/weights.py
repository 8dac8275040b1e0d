"""Check that loaded weights fit the model: none is missing, of another shape or silently unused."""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from cynosure.models.soundness import Checkpoint

# Buffers that older versions saved. They are computed from the configuration.
EMPTY = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias)$|(^|\.)(attn|attention|self_attention)\.bias$")
# Parts that a causal text model leaves out, recognized by a component of the tensor's name.
LEFT_OUT = {
    "vision or audio": re.compile(
        r"(^|[._])(vision|visual|image|audio|speech|video|vit|talker|token2wav|code2wav)\w*(\.|$)"
        r"|(^|\.)(multi_modal|mm)_projector\."
    ),
    "multi-token prediction": re.compile(r"(^|\.)(mtp|nextn)\w*\."),
}
WAY_OUT = "fix config.json, or pass `allow_unused_weights=True`"
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|blk)\.(\d+)\.")


def check_found(
    info: dict[str, Any], model: Any, checkpoint: Checkpoint, name: str, allow_unused_weights: bool | None
) -> tuple[str, ...]:
    """Check the loading info of transformers, and return notes on weights that the model does not use.

    Raises ValueError if weights are missing (transformers would make random ones), if they have another shape, or if
    some are unused that belong to no part left out on purpose. `allow_unused_weights` allows the latter; it is None if
    the caller has no such option.
    """
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        tensor, on_disk, expected = mismatched[0]
        more = f" ({len(mismatched)} tensors differ)" if len(mismatched) > 1 else ""
        raise ValueError(
            f"{name} does not fit its config.json: {tensor} is {shape(on_disk)} on disk, the configuration expects "
            f"{shape(expected)}{more}. Use the config.json and the weights of the same model"
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(
            f"{name} is not a complete causal language model: it lacks {len(missing)} of its tensors, such as "
            f"{missing[0]}"
        )
    unused = [key for key in sorted(info["unexpected_keys"]) if not is_empty(key, checkpoint)]
    excused = {key: part for key in unused if (part := part_left_out(key, model.config))}
    rest = [key for key in unused if key not in excused]
    if rest and not allow_unused_weights:
        raise ValueError(
            f"{name} has weights that its configuration leaves unused: {counted(rest)}. The loss would be that "
            f"of another model: {'get a complete file' if allow_unused_weights is None else WAY_OUT}"
        )
    notes = [f"{name} has weights that are left unused: {counted(rest)}"] if rest else []
    return (*notes, *left_out_notes(excused, model, checkpoint, name), *tied_note(model, name))


def left_out_notes(excused: dict[str, str], model: Any, checkpoint: Checkpoint, name: str) -> Iterator[str]:
    """Yield a note for each part that is left out on purpose. `excused` maps unused tensors to their parts."""
    parts = {f"{part} ": [key for key in excused if excused[key] == part] for part in dict.fromkeys(excused.values())}
    parts[""] = [key for key in ignorable(model, checkpoint) if key not in excused]
    for part, keys in parts.items():
        if keys:
            leaves = f"{type(model).__name__} leaves out {part}weights"
            yield f"{name}: {leaves}, which it has no use for: {counted(keys)}"


def counted(keys: Collection[str]) -> str:
    return f"{len(keys)} tensor{'s' if len(keys) != 1 else ''}, such as {next(iter(keys))}"


def shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes)) or "a single number"


def is_empty(key: str, checkpoint: Checkpoint) -> bool:
    """Whether a tensor is a buffer without information, such as a causal mask. A real bias has one dimension."""
    sizes = checkpoint.shapes.get(key)
    return bool(EMPTY.search(key)) and not (key.endswith(".bias") and sizes is not None and len(sizes) == 1)


def part_left_out(key: str, config: Any) -> str | None:
    """Return the part that a tensor belongs to if a causal text model leaves it out on purpose, else None."""
    for part, pattern in LEFT_OUT.items():
        if pattern.search(key):
            return part
    text, layer = config.get_text_config(), LAYER.search(key)
    n_layers, n_more = (getattr(text, name, None) or 0 for name in ("num_hidden_layers", "num_nextn_predict_layers"))
    if layer and n_layers <= int(layer[1]) < n_layers + n_more:
        return "multi-token prediction"
    return None


def ignorable(model: Any, checkpoint: Checkpoint) -> list[str]:
    """Return the tensors on disk that the model's class declares as unused."""
    patterns = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]
    if not patterns:
        return []
    own = model.state_dict().keys()
    unused = (key for key in checkpoint.shapes if key not in own and not is_empty(key, checkpoint))
    return sorted(key for key in unused if any(pattern.search(key) for pattern in patterns))


def tied_note(model: Any, name: str) -> tuple[str, ...]:
    """Return a note if the configuration ties the head to the embeddings but the head on disk differs."""
    from cynosure.loss import place

    config = model.config.get_text_config()
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    head, embeddings = getattr(head, "weight", None), getattr(embeddings, "weight", None)
    tied = getattr(config, "tie_word_embeddings", False) and getattr(model, "_tied_weights_keys", None)
    if not tied or head is None or embeddings is None or place(head) == place(embeddings):
        return ()
    return (
        f"{name}: config.json ties the head to the embeddings, and the weights hold a head that differs: "
        f"the head on disk is used, untied",
    )
