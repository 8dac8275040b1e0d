"""The bytes of tokens add up to the bytes of the text, or are disowned."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers import models as kinds
from transformers import CanineTokenizer, PreTrainedTokenizerFast

from cynosure.models import LanguageModel, load
from cynosure.text import adds_bos, prefix_token, seams, token_texts, tokenize
from tests.tiny import byte_tokenizer, piece_tokenizer, word_tokenizer

BYTES = byte_tokenizer()
PIECES = piece_tokenizer(dummy_prefix=False)
TEXTS = [
    "",
    " ",
    "the cat",
    " the cats  sat.\n\n",
    "naïve café",
    "猫は🐈‍⬛",
    "\x00\r\n\t",
    "\ufeff½",
    "e\u0301",
    "<s> a",
]


def closes(tokenizer: Any, text: str) -> None:
    tokens = tokenize(tokenizer, text)
    assert tokens.drift is None
    assert tokens.n_bytes is not None
    assert tokens.n_chars is not None
    assert len(tokens.n_bytes) == len(tokens.n_chars) == len(tokens.ids)
    assert tokens.n_bytes.sum() == len(text.encode())
    assert tokens.n_chars.sum() == len(text)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("tokenizer", [BYTES, PIECES, piece_tokenizer(dummy_prefix=True)])
def test_bytes_and_characters_close(tokenizer: Any, text: str) -> None:
    closes(tokenizer, text)


@pytest.mark.parametrize("text", ["", "the cat", "The cats sat."])
def test_words_close_where_each_is_known(text: str) -> None:
    closes(word_tokenizer(lowercase=False), text)


@pytest.mark.parametrize(
    ("text", "lost"),
    [("the dog sat", "dog"), ("the  cat", " "), ("the\ncat", "\n"), ("the cat\r\n", "\r"), ("猫", "猫")],
)
def test_words_and_white_space_that_are_lost_are_told(text: str, lost: str) -> None:
    drift = tokenize(word_tokenizer(lowercase=False), text).drift
    assert drift == f"the tokenizer has no token for some of the text, such as {lost!r}"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_close_on_any_text(text: str) -> None:
    closes(BYTES, text)


SPECIAL = ["<|im_start|>", "<|endoftext|>", "<bos>", "<eos>", "<s>", "</s>", "<unk>", "<0x41>", "<0xE7>", "[UNK]"]
SIGNS = [*"▁½Ⅵﬁİß猫\ufeff\x00\u200d", "▁▁", "▁a", "e\u0301", "👩‍👩‍👧", "🏳️‍🌈", "the", "The", "cats"]
SPACES = [" ", "  ", "\n", "\n\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028"]
AWKWARD = st.lists(
    st.sampled_from([*SPECIAL, *SIGNS, *SPACES]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    max_size=8,
).map("".join)


def added_tokenizer() -> Any:
    """Sentencepiece with added tokens that swallow the space around them, or hold white space."""
    tokenizer = piece_tokenizer(dummy_prefix=True)
    swallowing = AddedToken("<|im_start|>", lstrip=True, rstrip=True, special=True)
    tokenizer.add_tokens([swallowing, AddedToken("\n\n", normalized=False), AddedToken("cats", normalized=True)])
    return tokenizer


def squeezing_tokenizer() -> Any:
    tokenizer = piece_tokenizer(dummy_prefix=False)
    steps = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.NFKC(), normalizers.Replace(" ", "▁")]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


@cache
def canine() -> CanineTokenizer:
    """Return a tokenizer of every character of Unicode, which takes a second to make."""
    return CanineTokenizer()


ANY = [
    BYTES,
    byte_tokenizer(adds_bos=True),
    PIECES,
    piece_tokenizer(dummy_prefix=True),
    added_tokenizer(),
    squeezing_tokenizer(),
    word_tokenizer(lowercase=False),
    word_tokenizer(lowercase=True),
]


def told_or_closed(tokenizer: Any, text: str, special: bool, n_prompt_chars: int) -> None:
    """Either drift is told or the pieces are the text; the ids are the tokenizer's own; a prompt ends where it does."""
    for parse in (True, False):
        tokens = tokenize(tokenizer, text, special=special, parse_special=parse)
        options = {"add_special_tokens": special, "split_special_tokens": not parse}
        assert tokens.ids.tolist() == tokenizer(text, verbose=False, **options).input_ids
    assert tokens.drift or b"".join(tokens.pieces) == text.encode()
    n_prompt_chars = min(n_prompt_chars, len(text))
    tokens = tokenize(tokenizer, text, special=special, n_prompt_chars=n_prompt_chars)
    if tokens.n_chars is not None:
        assert tokens.n_chars.sum() == len(text)
        assert tokens.n_chars[: tokens.n_prompt].sum() == n_prompt_chars


@given(st.deferred(lambda: st.sampled_from([*ANY, canine()])), AWKWARD, st.booleans(), st.integers(0, 12))
def test_awkward_texts_close_or_are_told(tokenizer: Any, text: str, special: bool, n_prompt_chars: int) -> None:
    told_or_closed(tokenizer, text, special, n_prompt_chars)


@pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.exhaustive)])
def test_awkward_texts_close_with_real_tokenizers(name: str) -> None:
    tokenizer = load(name, dtype="float32", device="cpu").tokenizer

    @given(AWKWARD, st.booleans(), st.integers(0, 12))
    def check(text: str, special: bool, n_prompt_chars: int) -> None:
        told_or_closed(tokenizer, text, special, n_prompt_chars)
        tokens = tokenize(tokenizer, text)
        spelled = "".join(token_texts(tokenizer, tokens.ids))
        assert tokens.drift is None or spelled != text

    check()


@pytest.mark.parametrize("character", ["\x04", "\U00040000"])
@pytest.mark.parametrize("text", ["a {} b", "{}", "{}{{", "  {}", "a{}  "])
def test_bytes_that_smollm2_lacks_are_told(smollm2: LanguageModel, text: str, character: str) -> None:
    """Its vocabulary has no 0x04 and no 0xF1, and it passes over them without a word."""
    drift = tokenize(smollm2.tokenizer, text.format(character)).drift
    assert drift is not None
    assert "no token" in drift


@pytest.mark.parametrize("text", TEXTS)
def test_smollm2_closes(smollm2: LanguageModel, text: str) -> None:
    closes(smollm2.tokenizer, text)


def test_a_character_belongs_to_the_token_of_its_first_byte() -> None:
    tokens = tokenize(BYTES, "é猫")  # é is one merge, 猫 three bytes
    assert tokens.n_bytes is not None
    assert tokens.n_chars is not None
    assert tokens.n_bytes.tolist() == [2, 1, 1, 1]
    assert tokens.n_chars.tolist() == [1, 1, 0, 0]


def test_the_space_a_tokenizer_puts_before_a_text_is_not_the_texts() -> None:
    tokens = tokenize(piece_tokenizer(dummy_prefix=True), "a b")
    assert tokens.n_bytes is not None
    assert tokens.n_bytes.tolist() == [1, 1, 1]  # "▁a", "▁", "b"


def test_byte_fallback_counts_raw_bytes() -> None:
    tokens = tokenize(PIECES, "a猫")
    assert PIECES.convert_ids_to_tokens(tokens.ids.tolist())[1:] == ["<0xE7>", "<0x8C>", "<0xAB>"]
    assert tokens.n_bytes is not None
    assert tokens.n_bytes.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("text", ["The cat", "a \N{ROMAN NUMERAL SIX}"])
def test_a_normaliser_is_found_out(text: str) -> None:
    tokenizer = word_tokenizer(lowercase=True)
    tokens = tokenize(tokenizer, text)
    assert tokens.n_bytes is None
    assert tokens.n_chars is None
    assert tokens.drift is not None
    assert "normalises the text" in tokens.drift


@pytest.mark.parametrize("text", ["a  a", "a ½"])
def test_squeezed_space_and_compatible_characters_are_found_out(text: str) -> None:
    drift = tokenize(squeezing_tokenizer(), text).drift
    assert drift is not None
    assert "normalises the text" in drift


def test_characters_thrown_away_are_found_out() -> None:
    letters = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(kinds.BPE(vocab={letter: i for i, letter in enumerate("abc ")}, merges=[]))
    )
    no_points = word_tokenizer(lowercase=False)
    no_points.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    for tokenizer, text in ((letters, "a cxb"), (no_points, "the, cat")):
        drift = tokenize(tokenizer, text).drift
        assert drift is not None
        assert "has no token for some of the text" in drift
    closes(letters, "a cb")
    closes(no_points, "the cat")


def test_a_tokenizer_of_characters_without_offsets_closes() -> None:
    closes(canine(), "naïve ß 猫🐈")


def test_a_literal_low_line_of_sentencepiece_is_found_out() -> None:
    tokens = tokenize(PIECES, "a▁a")  # read as a space: three bytes become one
    assert tokens.n_bytes is None or tokens.n_bytes.sum() == len("a▁a".encode())


def test_smollm2_splits_digits_as_its_file_says(smollm2: LanguageModel) -> None:
    """The tokens llama.cpp makes of it with the same file (`tokenizer.ggml.pre` is smollm)."""
    ids = tokenize(smollm2.tokenizer, "in 2024 ½ ²\n\n1\n\n1").ids.tolist()
    names = smollm2.tokenizer.convert_ids_to_tokens(ids)
    assert names == ["in", "Ġ", "2", "0", "2", "4", "Ġ", "Â½", "Ġ", "Â²", "ĊĊ", "1", "ĊĊ", "1"]


def test_special_tokens_of_smollm2_are_its_files(smollm2: LanguageModel) -> None:
    tokenizer = smollm2.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert not adds_bos(tokenizer)
    assert smollm2.model.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("special", "expected"),
    [({"bos_token": "<s>", "eos_token": "</s>"}, 0), ({"eos_token": "</s>"}, 0), ({}, None)],
)
def test_the_prefix_is_bos_else_eos_else_none(special: dict[str, str], expected: int | None) -> None:
    assert prefix_token(byte_tokenizer(special=special)) == expected


def test_special_tokens_are_never_added_to_a_text() -> None:
    tokenizer = byte_tokenizer(adds_bos=True)
    assert adds_bos(tokenizer)
    assert not adds_bos(BYTES)
    assert tokenize(tokenizer, "a").ids.tolist() == tokenizer.convert_tokens_to_ids(["a"])


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES, word_tokenizer(lowercase=False)])
def test_tokens_read_as_text(tokenizer: Any) -> None:
    ids = tokenize(tokenizer, "the cat").ids
    assert "".join(token_texts(tokenizer, ids)).replace(" ", "") == "thecat"
    if tokenizer is not BYTES:
        return
    assert token_texts(tokenizer, tokenize(tokenizer, " the猫").ids) == [" the", "\\xe7", "\\x8c", "\\xab"]
    assert token_texts(tokenizer, np.array([0])) == ["<s>"]


@pytest.mark.parametrize("make", [byte_tokenizer, squeezing_tokenizer, lambda: word_tokenizer(lowercase=True)])
def test_a_vocabulary_is_read_once_not_for_each_document(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the documents close or not: a vocabulary may be of 100 MB."""
    tokenizer, reads = make(), []
    kind = type(tokenizer)
    added, vocabulary = kind.added_tokens_decoder, kind.get_vocab
    monkeypatch.setattr(kind, "added_tokens_decoder", property(lambda self: reads.append("added") or added.fget(self)))
    monkeypatch.setattr(kind, "get_vocab", lambda self: reads.append("vocabulary") or vocabulary(self))
    monkeypatch.setattr(seams, "PIECE_CHARS", 20)
    for text in ["The cat sat.", "the  cat", "the cat sat on the mat. " * 9] * 5:
        tokenize(tokenizer, text)
    assert reads.count("added") <= 3  # its spelling, its seams and its special tokens
    assert reads.count("vocabulary") <= 1
