"""A vocabulary made of a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.text import tokenize
from cynosure.training.packing import Separators
from cynosure.training.vocabulary import train_tokenizer

TOKENIZER = train_tokenizer(["the cat and the hat sat"] * 4 + ["a é 猫"] * 3, 270)


@given(st.text(max_size=60))
def test_any_text_comes_back(text: str) -> None:
    """Byte level: there is no unknown, and the bytes of the tokens are the text's."""
    tokens = tokenize(TOKENIZER, text)
    assert b"".join(tokens.pieces) == text.encode()
    assert TOKENIZER.decode(tokens.ids.tolist()) == text


def test_its_end_opens_documents_too() -> None:
    separators = Separators.of(TOKENIZER)
    assert separators.shared
    assert TOKENIZER.convert_ids_to_tokens(separators.ending) == "<|endoftext|>"


def test_the_sizes_it_can_have() -> None:
    assert len(TOKENIZER) == 270
    assert len(train_tokenizer(["abab"], 1000)) < 300
    with pytest.raises(ValueError, match="at least 257"):
        train_tokenizer(["abab"], 256)


def test_the_same_text_makes_the_same_vocabulary() -> None:
    texts = ["the cat and the hat sat on the mat"] * 5
    assert train_tokenizer(texts, 290).get_vocab() == train_tokenizer(texts, 290).get_vocab()
