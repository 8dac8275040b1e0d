"""The model types of transformers that have a loss of text, in two tables, and what makes their models."""

from types import SimpleNamespace
from typing import Any

TABLES = ("causal", "other")


def kinds_of(table: str) -> list[str]:
    """The model types of a table: causal language models, or encoder-decoders and models with sounds or images."""
    from transformers.models.auto import modeling_auto as auto

    causal = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if table == "causal":
        return list(causal)
    others = (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
              auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)  # fmt: skip
    return list(dict.fromkeys(kind for names in others for kind in names if names[kind] != causal.get(kind)))


def auto_of(kind: str, table: str) -> Any:
    """The class that makes the model of a type: an auto class, or one with the same `from_config`."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    direct = DIRECT.get((kind, table))
    if direct is not None:
        return SimpleNamespace(from_config=getattr(transformers, direct)._from_config)
    if table == "causal":
        return transformers.AutoModelForCausalLM
    for names, made in (
        (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForSeq2SeqLM),
        (auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, transformers.AutoModelForSpeechSeq2Seq),
        (auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, transformers.AutoModelForImageTextToText),
    ):
        if kind in names:
            return made
    raise KeyError(kind)


# Models that no auto class makes of their configurations.
DIRECT = {
    ("evolla", "other"): "EvollaForProteinText2Text",
    ("musicgen", "causal"): "MusicgenForCausalLM",
    ("musicgen_melody", "causal"): "MusicgenMelodyForCausalLM",
}
