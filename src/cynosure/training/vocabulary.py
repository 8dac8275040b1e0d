"""A vocabulary of its own for a text: byte-level BPE, in which every byte has a token."""

from collections.abc import Iterable
from typing import Any

END = "<|endoftext|>"  # opens and ends every document
LEAST = 257  # a token a byte, and the end of a document
LEAST_PAIRS = 2  # a pair that is there once makes no token


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A transformers tokenizer of at most `vocab_size` tokens, made of the texts; fewer where no pair is left to join.

    The pieces between which nothing is joined are GPT-2's. ValueError for fewer than 257 tokens.

    >>> tokenizer = train_tokenizer(["the cat and the hat"] * 9, 264)
    >>> tokenizer.tokenize("the hat"), len(tokenizer), tokenizer.bos_token
    (['the', 'Ġ', 'hat'], 264, '<|endoftext|>')
    """
    if vocab_size < LEAST:
        raise ValueError(
            f"a byte-level vocabulary has at least {LEAST} tokens, one a byte and the end: got {vocab_size}"
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
