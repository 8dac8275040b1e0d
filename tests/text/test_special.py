"""Strings of a text that are special tokens: read as the characters they are, or as those tokens."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers import models as kinds
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from cynosure.measure import Corpus, predict, score, score_all
from cynosure.models import load, split
from cynosure.text import Document, special_strings, tokenize
from cynosure.text.tokens import text_ids
from tests.tiny import byte_tokenizer, piece_tokenizer, tiny

TEXT = "the end<s> of </s>it <s>the cat"
SPECIALS = ["<s>", "</s>", "<s", "/s>", " ", "the", "é", "<think>", "<", ">"]


def thinking() -> Any:
    """With an added token that is not special."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    return tokenizer


def unigram(**options: Any) -> Any:
    """With its special tokens in the vocabulary, where they are likelier than their characters."""
    characters = [(character, -5.0) for character in "abcdefghijklmnopqrstuvwxyzé<>/▁"]
    model = kinds.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *characters], 0, False)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**options)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def words(kind: Any) -> Any:
    """With its special tokens among the words, which no other tokens spell."""
    words = ["<unk>", "<s>", "</s>", "the", "é", "<"]
    tokenizer = Tokenizer(kind(vocab={word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = {
    "WordLevel": words(kinds.WordLevel),
    "WordPiece": words(kinds.WordPiece),
    "Unigram": unigram(),
    "Unigram without a prefix": unigram(prepend_scheme="never"),
    "bytes": byte_tokenizer(),
    "pieces": piece_tokenizer(dummy_prefix=False),
    "with a prefix": piece_tokenizer(dummy_prefix=True),
    "not special": thinking(),
    "in Python": ByT5Tokenizer(),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_as_text_and_as_tokens(name: str) -> None:
    tokenizer = TOKENIZERS[name]

    @given(st.lists(st.sampled_from(SPECIALS)).map("".join))
    def check(text: str) -> None:
        literal = special_strings(tokenizer, text)
        known = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        read, parsed = tokenize(tokenizer, text), tokenize(tokenizer, text, parse_special=True)
        assert read.special == parsed.special == tuple(literal)
        assert not known & set(read.ids.tolist())
        assert [tokenizer.decode([id_]) for id_ in parsed.ids.tolist() if id_ in known] == literal
        for tokens, parse in ((read, False), (parsed, True)):
            assert text_ids(tokenizer, text, parse_special=parse).tolist() == tokens.ids.tolist()
            assert tokens.drift or b"".join(tokens.pieces) == text.encode()

    check()


def test_of_several_in_one_place_the_longest_is_read() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<s>>", special=True)])
    assert special_strings(tokenizer, "a<s>>b<s>") == ["<s>>", "<s>"]
    parsed = tokenize(tokenizer, "a<s>>b<s>", parse_special=True)
    assert tokenizer.convert_ids_to_tokens(parsed.ids.tolist()) == ["a", "<s>>", "b", "<s>"]


@pytest.mark.parametrize("kind", [kinds.WordLevel, kinds.WordPiece])
def test_words_that_no_other_tokens_spell_are_unknown(kind: Any) -> None:
    tokenizer = words(kind)
    tokens = tokenize(tokenizer, "the <s> the")
    assert tokenizer.convert_ids_to_tokens(tokens.ids.tolist()) == ["the", "<unk>", "the"]
    assert tokens.drift is not None
    assert tokens.carried is not None
    assert tokens.carried.lost.tolist() == [False, True, False]
    assert 1 in tokenize(tokenizer, "the <s> the", parse_special=True).ids


def test_other_added_tokens_are_tokens_either_way() -> None:
    tokenizer = TOKENIZERS["not special"]
    id_ = tokenizer.convert_tokens_to_ids("<think>")
    for parse in (False, True):
        assert (tokenize(tokenizer, "a<think>b<s>", parse_special=parse).ids == id_).sum() == 1
    assert special_strings(tokenizer, "a<think>b<s>") == ["<s>"]


@pytest.mark.parametrize("name", ["smollm2", pytest.param("gemma3-270m", marks=pytest.mark.exhaustive)])
def test_real_tokenizers(name: str) -> None:
    """The 13 bytes of `<|endoftext|>` are those of the tokens that spell it."""
    tokenizer = load(name, dtype="float32", device="cpu").tokenizer
    text = "x" + ("<|endoftext|>" if name == "smollm2" else "<bos>") + "y"
    read, parsed = tokenize(tokenizer, text), tokenize(tokenizer, text, parse_special=True)
    assert b"".join(read.pieces) == b"".join(parsed.pieces) == text.encode()
    assert len(parsed.ids) == 3 < len(read.ids)
    assert tokenizer(text, add_special_tokens=False).input_ids == parsed.ids.tolist()  # and its own call is as before


def test_long_texts_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from cynosure.text import seams

    tokenizer, text = byte_tokenizer(), ("the cat sat on the mat<s>.\nso it was </s>" * 9)
    whole = tokenize(tokenizer, text)
    monkeypatch.setattr(seams, "PIECE_CHARS", 20)
    pieces = tokenize(tokenizer, text)
    assert len(list(seams.in_pieces(tokenizer, text, {"split_special_tokens": True}))) > 3
    assert (pieces.ids == whole.ids).all()
    assert not set(tokenizer.all_special_ids) & set(pieces.ids.tolist())


def test_protocols_read_them_as_their_peers_do() -> None:
    model, document = split(tiny()), Document("a", TEXT * 3)
    n_bytes = len(document.text.encode())
    for name, scores in score_all(model, Corpus([document], {}), window=16).items():
        assert not isinstance(scores, str)
        values = scores.to_json()
        special = "text" if name in ("sliding", "llama-cpp") else "parse"
        assert (values["special"], values["special_strings"]) == (special, 9)
        (note,) = (note for note in values["notes"] if "special" in note)
        how = {"text": "read as text", "parse": "read as those tokens"}[special]
        assert note.startswith(f"the texts hold 9 strings that are special tokens, such as '<s>': {how}")
        left_out = sum(part["byte_end"] - part["byte_start"] for part in values["excluded"])
        if values["bytes"] is not None:
            assert values["bytes"] + left_out == n_bytes
    read, parsed = (score(model, [document], special=special) for special in ("text", "parse"))
    assert read.tokens - parsed.tokens == 9 * 2 + 3  # `<s>` is three bytes, `</s>` four
    assert read.n_bytes == parsed.n_bytes == n_bytes


def test_texts_without_are_not_spoken_of() -> None:
    scores = score(tiny(), ["the end < s>"])
    assert scores.to_json()["special_strings"] == 0
    assert not any("special" in note for note in scores.notes)


def test_predict() -> None:
    model = tiny()
    read, parsed = (predict(model, "the<s>", truth="</s>", special=special) for special in ("text", "parse"))
    assert [token.token for token in read.truth] == ["<", "/", "s", ">"]
    assert [token.token for token in parsed.truth] == ["</s>"]
    assert math.isfinite(read.nll_nats)
    with pytest.raises(ValueError, match="unknown special 'both'"):
        predict(model, "the", special="both")


class Unlisted:
    """A tokenizer that does not say which tokens are special, as Mistral's own."""

    def added_tokens_decoder(self) -> None:
        raise NotImplementedError

    def __len__(self) -> int:
        return 8


def test_a_tokenizer_that_lists_no_special_tokens_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"a Unlisted, does not list its special tokens: give one with a tokenizer\.json"
    ):
        tokenize(Unlisted(), "the")
