"""Train a byte-level BPE vocabulary on texts."""

from collections.abc import Iterable
from typing import Any

END = "<|endoftext|>"  # opens and ends every document
LEAST = 257  # one token per byte, and the end of a document
LEAST_PAIRS = 2  # a pair that occurs once makes no token


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Train a transformers tokenizer on texts. It splits text into words as GPT-2's does.

    Args:
        texts: the texts.
        vocab_size: maximum number of tokens, at least 257. It has fewer if no pair of tokens is left to merge.

    Returns:
        The tokenizer.

    Raises:
        ValueError: `vocab_size` is less than 257.

    Example:
        >>> tokenizer = train_tokenizer(["the cat and the hat"] * 9, 264)
        >>> tokenizer.tokenize("the hat"), len(tokenizer), tokenizer.bos_token
        (['the', 'Ġ', 'hat'], 264, '<|endoftext|>')
    """
    if vocab_size < LEAST:
        raise ValueError(
            f"a byte-level vocabulary has at least {LEAST} tokens, one per byte and the end: got {vocab_size}"
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST_PAIRS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrap: Any = PreTrainedTokenizerFast
    return wrap(tokenizer_object=tokenizer, bos_token=END, eos_token=END)
