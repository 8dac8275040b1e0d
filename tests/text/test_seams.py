"""Long texts tokenized in pieces have the tokens they have as a whole."""

import logging
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

from cynosure.models.loading import locate
from cynosure.text import seams, tokenize
from cynosure.text.seams import LETTER, LINE, NUMBER, WORD, in_pieces, seams_of
from cynosure.training.packing import Separators, document_ids
from tests.tiny import byte_tokenizer, piece_tokenizer, word_tokenizer

SIGNS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = SIGNS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + SIGNS + "?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + SIGNS + "?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"""
    r"\s*[\r\n]+|\s+(?!\S)|\s+",
]


def splitting(*patterns: str, digits: bool = False) -> Any:
    """A byte-level tokenizer that splits by patterns, and has tokens that lie across what they split."""
    names = ["Ġ", "Ċ", "č", *"abcdehtxsl.'19"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("a", "Ġ"), (".", "Ċ"), ("1", "9")]
    merges += [("Ċ", "a"), ("Ċ", "1"), ("č", "Ċ"), ("Ġ", "Ċ")]
    tokenizer = byte_tokenizer(special={"eos_token": "</s>"})
    vocab = tokenizer.get_vocab()
    for name in [*names, *("".join(pair) for pair in merges)]:
        vocab.setdefault(name, len(vocab))
    tokenizer.backend_tokenizer.model = kinds.BPE(vocab=vocab, merges=merges)
    stages: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    stages += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    by_itself = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*stages, by_itself])
    return tokenizer


def swallowing() -> Any:
    """Added tokens that swallow white space, hold it, stand alone only, or are words."""
    tokenizer = splitting(LLAMA3)
    tokenizer.add_tokens(
        [
            AddedToken("<|im_start|>", lstrip=True, rstrip=True, special=True),
            AddedToken("the b", normalized=False),
            AddedToken("\n\n", normalized=True),
            AddedToken("cat", single_word=True),
        ]
    )
    return tokenizer


def composing() -> Any:
    tokenizer = splitting(LLAMA3)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def prefixed() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def whole_words(scheme: str) -> Any:
    """Sentencepiece in the newer spelling, which leaves the text in one."""
    tokenizer = piece_tokenizer(dummy_prefix=False)
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return tokenizer


def real(name: str) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(locate(name)[0])


def with_eos() -> Any:
    tokenizer = splitting(LLAMA3)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    return tokenizer


CUT = {
    "GPT-2": splitting(),
    "GPT-2 with digits": splitting(digits=True),
    "Llama 3": splitting(LLAMA3),
    "o200k": splitting(O200K),
    "DeepSeek": splitting(*DEEPSEEK),
    "added tokens": swallowing(),
    "NFC": composing(),
    "prefix space": prefixed(),
    "BOS and EOS": with_eos(),
    "sentencepiece": piece_tokenizer(dummy_prefix=False),
    "Metaspace": whole_words("first"),
    "Metaspace without a prefix": whole_words("never"),
}
WHOLE = {
    "sentencepiece with a prefix": piece_tokenizer(dummy_prefix=True),
    "WordPiece": word_tokenizer(lowercase=True),
    "an unknown pattern": splitting(r"\p{L}+ \p{L}+|\s+"),
    "one that looks behind": splitting(LLAMA3 + r"|(?<=\S)\s"),
}
MARKS = ["<|im_start|>", "</s>", "<s>", "the b", "cat", "\n\n", "\r\n", "\n", " ", "  ", "\t", "\u00a0", "\u0301", "▁"]
WORDS = [
    "the",
    "a",
    "b",
    "x",
    "éa",
    "猫",
    "は",
    "s's",
    "'ll",
    "1",
    "199",
    "½",
    ".",
    "。",
    ",a",
    "👩‍👩‍👧",
    "в",
    "A",
    "cats",
]
TEXTS = st.lists(
    st.sampled_from([*MARKS, *WORDS, "a b", "the the", ".\nthe", "x\n1"])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=2),
    max_size=24,
).map("".join)


@pytest.fixture(autouse=True)
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "PIECE_CHARS", 3)


@pytest.fixture
def as_a_whole() -> Any:
    """What a tokenizer makes of a text in one piece."""

    def found(tokenizer: Any, text: str, **options: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(seams, "PIECE_CHARS", 1 << 40)
            return tokenize(tokenizer, text, **options)

    return found


def same(found: Any, expected: Any) -> None:
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.pieces == expected.pieces
    assert (found.n_prompt, found.drift) == (expected.n_prompt, expected.drift)
    assert found.ids.dtype == expected.ids.dtype


@pytest.mark.parametrize("name", [*CUT, *WHOLE])
def test_pieces_have_the_tokens_of_the_whole(name: str, as_a_whole: Any) -> None:
    tokenizer = (CUT | WHOLE)[name]

    @given(TEXTS, st.booleans(), st.booleans(), st.integers(0, 20))
    def check(text: str, special: bool, parse: bool, n_prompt_chars: int) -> None:
        options: dict[str, Any] = {"special": special, "n_prompt_chars": min(n_prompt_chars, len(text))}
        options["parse_special"] = parse
        same(tokenize(tokenizer, text, **options), as_a_whole(tokenizer, text, **options))
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=not parse).input_ids
        assert document_ids(tokenizer, Separators(None, None), text, parse_special=parse)[0].tolist() == ids
        assert "".join(in_pieces(tokenizer, text, {"split_special_tokens": not parse})) == text

    check()


@pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.exhaustive)])
def test_pieces_have_the_tokens_of_the_whole_with_real_tokenizers(name: str, as_a_whole: Any) -> None:
    tokenizer = real(name)
    assert seams_of(tokenizer) is not None  # read once, before anything is timed

    @given(TEXTS, st.booleans())
    def check(text: str, special: bool) -> None:
        same(tokenize(tokenizer, text, special=special), as_a_whole(tokenizer, text, special=special))

    check()
    assert len(list(in_pieces(tokenizer, "the cat sat on the mat.\nIt was so. " * 9))) > 20


@pytest.mark.parametrize("name", CUT)
def test_real_text_is_cut_in_pieces(name: str) -> None:
    pieces = list(in_pieces(CUT[name], "the cat sat on the mat.\nit was so. " * 9))
    assert len(pieces) > 20
    assert max(map(len, pieces)) < 40


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_not_proven_is_one_piece(name: str) -> None:
    assert seams_of(WHOLE[name]) is None
    assert len(list(in_pieces(WHOLE[name], "the cat sat on the mat.\n" * 9))) == 1


def test_no_cut_touches_an_added_token() -> None:
    """A cut is made before a space, except for the spaces in an added token and beside it."""
    text = "xx aa the bb aa aa"
    assert list(in_pieces(splitting(LLAMA3), text)) == ["xx aa", " the", " bb", " aa", " aa"]
    assert list(in_pieces(swallowing(), text)) == ["xx aa the bb aa", " aa"]
    assert list(in_pieces(swallowing(), "xxx <|im_start|> aa bb")) == ["xxx <|im_start|> aa", " bb"]


def test_a_seam_that_does_not_hold_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one is tried; a tokenizer that is not what its structure says is given the whole text."""
    tokenizer, text = splitting(), "aa bb aa bb aa bb"
    expected = tokenize(tokenizer, text)
    assert len(list(in_pieces(tokenizer, text))) > 2
    monkeypatch.setattr(seams, "holds", lambda tokenizer, text, at, reading: at > 8)
    assert list(in_pieces(tokenizer, text)) == ["aa bb aa bb", " aa", " bb"]
    same(tokenize(tokenizer, text), expected)
    monkeypatch.undo()
    joined = splitting(r"\p{L}+ \p{L}+|\s+")
    seams.KNOWN[joined] = len(joined), seams_of(tokenizer)  # a proof that is wrong
    monkeypatch.setattr(seams, "PIECE_CHARS", 3)
    joined.backend_tokenizer.model = kinds.WordLevel({"aaĠbb": 0, "aa": 1, "bb": 2, "Ġ": 3, "?": 4}, "?")
    assert list(in_pieces(joined, "aa bb aa bb")) == ["aa bb aa bb"]


def test_letters_of_seams_are_letters_that_nfc_leaves_alone() -> None:
    letters = [chr(code) for code in range(0x10000) if re.fullmatch(f"[{LETTER}]", chr(code))]
    assert len(letters) > 30_000
    for letter in letters:
        assert unicodedata.category(letter) in ("Ll", "Lo")
        assert unicodedata.combining(letter) == 0
        for before in (" ", "\n", "."):
            assert unicodedata.normalize("NFC", before + letter) == before + letter


def test_a_byte_that_is_dropped_is_told_as_in_the_whole(as_a_whole: Any) -> None:
    tokenizer = real("smollm2")
    text = "the cat sat on the mat. \x04 was there too, and the \U00040000 as well"
    same(tokenize(tokenizer, text), as_a_whole(tokenizer, text))


def test_memory_is_announced_before_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(seams, "ANNOUNCED_BYTES", 10_000)
    with caplog.at_level(logging.WARNING, "cynosure"):
        tokenize(splitting(), "the cat " * 20)
        assert not caplog.records
        tokenize(WHOLE["sentencepiece with a prefix"], "the cat " * 20)
    (message,) = caplog.messages
    assert message.startswith("160 characters of a document must be tokenized in one piece")
    assert "split the document" in message


def test_kinds_of_seam_follow_the_pre_tokenizers() -> None:
    everywhere = {WORD, LINE, NUMBER}
    cases = [(splitting(LLAMA3), everywhere), (splitting(*DEEPSEEK), everywhere), (prefixed(), {WORD})]
    for tokenizer, expected in [*cases, (splitting(r"\p{N}{1,3}"), {NUMBER})]:
        found: Any = seams_of(tokenizer)
        assert found.places.kinds == expected
