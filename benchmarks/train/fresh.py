"""New models to train: a preset with a vocabulary of some size, made of the addresses once and kept."""

import re
from typing import TYPE_CHECKING, Any

from benchmarks.texts import cache_folder, every_address

if TYPE_CHECKING:
    from cynosure.models import LanguageModel

FRESH = re.compile(r"(tiny|small|base)(?::(\d+))?")  # a preset, and how large its vocabulary is


def fresh_model(name: str, dtype: Any, row_tokens: int) -> "LanguageModel":
    """The model that `small` or `small:32768` stands for, its weights random but the same each time."""
    from cynosure.models import LanguageModel
    from cynosure.training.presets import find_preset, new_model

    match = FRESH.fullmatch(name)
    assert match is not None
    preset = find_preset(match[1])
    tokenizer = vocabulary(int(match[2] or preset.vocab_size))
    model = new_model(preset, tokenizer, row_tokens, seed=0).to(dtype)
    return LanguageModel(model, tokenizer, f"{match[1]}, new, {len(tokenizer):,} tokens of vocabulary")


def vocabulary(size: int) -> Any:
    """A tokenizer of all the addresses. ValueError where these do not support as many tokens."""
    from transformers import AutoTokenizer

    from cynosure.training.vocabulary import train_tokenizer

    folder = cache_folder(f"vocabulary-{size}")
    if not (folder / "tokenizer.json").exists():
        made = train_tokenizer(every_address(), size)
        if len(made) < size:
            raise ValueError(f"the addresses support a vocabulary of {len(made):,} tokens, not {size:,}")
        made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
