"""What tokenizers lose of a text: found out for each kind, and left out of what is per byte."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from cynosure.measure import compare, score
from cynosure.measure.storage.rows import LOST, MOST_LOST
from cynosure.text import tokenize
from tests.measure.test_compare import Tok, made
from tests.measure.test_stats import scores, shard
from tests.tiny import tiny_model

TEXT = ["the cat sat on the mat, and the dog on the log", "The cats sat; 12 dogs ran"]


def wrapped(tokenizer: Tokenizer, unknown: str | None = None) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=unknown)


def byte_level(alphabet: bool, decoder: bool = True) -> Any:
    """As the Hugging Face course trains it; without `initial_alphabet` it lacks the bytes that TEXT lacks."""
    tokenizer = Tokenizer(kinds.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if decoder:
        tokenizer.decoder = decoders.ByteLevel()
    initial = pre_tokenizers.ByteLevel.alphabet() if alphabet else []
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=initial, show_progress=False)
    )
    return wrapped(tokenizer)


def sentencepiece(space: bool) -> Any:
    """With byte fallback; with `▁` as a token of its own or without."""
    letters = sorted(set("".join(TEXT)) - {" "})
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(["▁"] if space else [])]
    merges: list[tuple[str, str]] = [("t", "h")]
    model = kinds.BPE(
        vocab={piece: i for i, piece in enumerate([*pieces, "th"])},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(tokenizer, "<unk>")


def words(kind: Any) -> Any:
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "the", "cat", "##s", "sat", ",", "on"])}
    tokenizer = Tokenizer(kind(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(tokenizer, "[UNK]")


def unigram(fallback: bool) -> Any:
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -12.0) for byte in range(256) if fallback)]
    pieces += [*((letter, -5.0) for letter in sorted(set("".join(TEXT)) - {" "})), ("▁the", -3.0), ("▁", -4.0)]
    tokenizer = Tokenizer(kinds.Unigram(pieces, 0, fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return wrapped(tokenizer, "<unk>")


KINDS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: byte_level(True),
    "bytes without an alphabet": lambda: byte_level(False),
    "bytes without an alphabet or a decoder": lambda: byte_level(False, decoder=False),
    "sentencepiece": lambda: sentencepiece(True),
    "sentencepiece without a space": lambda: sentencepiece(False),
    "WordLevel": lambda: words(kinds.WordLevel),
    "WordPiece": lambda: words(kinds.WordPiece),
    "Unigram": lambda: unigram(True),
    "Unigram without bytes": lambda: unigram(False),
}
WHOLE = ("bytes", "sentencepiece", "sentencepiece without a space", "Unigram")  # they lose nothing of any text
made_once = cache(lambda kind: KINDS[kind]())
PARTS = st.sampled_from(
    ["the", "cat", "cats", " ", " ", "  ", ",", "sat", "\n", "\r\n", "\x04", "dog", "猫", "é", "12"]
)


def letters(text: str) -> list[str]:
    return sorted(text.replace(" ", "").replace("▁", ""))


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(PARTS, max_size=8))
def test_what_is_lost_is_told_and_nothing_else(kind: str, parts: list[str]) -> None:
    tokenizer, text = made_once(kind), "".join(parts)
    tokens = tokenize(tokenizer, text)
    if kind in WHOLE:
        assert tokens.drift is None
    if tokens.drift is None:
        assert b"".join(tokens.pieces).decode() == text
    # Independently: by the names of the tokens, which are those of GPT-2's bytes, of sentencepiece, or of words.
    names = tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    if kind.startswith("bytes"):
        alphabet = bytes_to_unicode()
        whole = "".join(names) == "".join(alphabet[byte] for byte in text.encode())
        assert whole == (tokens.drift is None)
    elif kind in ("WordLevel", "WordPiece", "Unigram without bytes"):
        unknown = any(name in ("[UNK]", "<unk>") for name in names)
        gone = letters("".join(name.removeprefix("##") for name in names)) != letters(text)
        if unknown or gone:
            assert tokens.drift is not None


def test_a_vocabulary_without_an_alphabet_has_what_it_has() -> None:
    for kind in ("bytes without an alphabet", "bytes without an alphabet or a decoder"):
        tokens = tokenize(made_once(kind), "the cat sat on the log")
        assert tokens.drift is None
        assert tokenize(made_once(kind), "the cat\r").drift is not None
        assert tokenize(made_once(kind), "猫").drift is not None


def test_documents_that_lose_text_are_left_out_of_what_is_per_byte() -> None:
    """Thirty whole ones and one that is not: the metrics are those of the thirty, and the one is named."""
    whole = [shard([1.0, 2.0, 0.5 + i], document=i) for i in range(30)]
    both, without = scores(*whole, shard([9.0], document=30, drift="a word is lost")), scores(*whole)
    bits = sum(1.0 + 2.0 + 0.5 + i for i in range(30)) / math.log(2)
    for name in ("bits_per_byte", "bits_per_char"):
        assert both.figures[name] == without.figures[name]
        assert math.isclose(without.figures[name].value or 0, bits / (30 * len(" thecat,")), rel_tol=1e-12)
    assert both.nats == without.nats + 9
    assert "metrics per byte and character leave out 4 bytes of 1 document: a word is lost in d30" in both.notes
    by_class = [found.to_json()["by_class"][0] for found in (both, without)]
    assert by_class[0]["bits_per_byte"] == by_class[1]["bits_per_byte"]
    assert by_class[0]["nats"] == by_class[1]["nats"] + 9


@pytest.mark.parametrize(("n_whole", "told"), [(9, True), (8, False)])
def test_too_much_that_is_lost_leaves_nothing_per_byte(n_whole: int, told: bool) -> None:
    assert MOST_LOST == 0.1
    whole = [shard([1.0, 2.0], document=i) for i in range(n_whole)]
    found = scores(*whole, shard([1.0, 2.0], document=n_whole, drift="a word is lost"))
    assert (found.figures["bits_per_byte"].value is not None) == told


def test_a_comparison_leaves_out_what_one_side_loses() -> None:
    texts = [[Tok(b"one two ", 1.0 + i), Tok(b"three", 2.0)] for i in range(40)]
    a, b = made(*texts), made(*([Tok(t[0].piece, 5.0), t[1]] for t in texts))
    expected = compare(made(*texts[:-1]), made(*([Tok(t[0].piece, 5.0), t[1]] for t in texts[:-1])))
    b.statistics.facts[39] = b.statistics.facts[39]._replace(drift="a word is lost")
    found = compare(a, b)
    assert found.changes["bits_per_byte"] == expected.changes["bits_per_byte"]
    assert "text that B loses is left out: 13 bytes of 1 document: a word is lost in d39" in found.notes
    assert found.documents == 39
    assert np.isclose(found.n_bytes, 39 * 13)


def test_a_comparison_leaves_out_the_tokens_that_lose_text() -> None:
    """The rest of their document is compared, whatever they cost."""
    words = [b"one ", b"two ", b"three ", b"four ", b"five "] * 4
    a = made([Tok(word, 1.0 + i) for i, word in enumerate(words)])
    b = made([Tok(word, 99.0 if i == 3 else 2.0, lost=i == 3) for i, word in enumerate(words)], drift="a word is lost")
    found = compare(a, b)
    assert found.n_bytes == sum(map(len, words)) - len(b"four ")
    assert found.changes["bits_per_byte"].b == 19 * 2.0 / math.log(2) / found.n_bytes
    assert found.changes["bits_per_byte"].a == (sum(range(1, 21)) - 4.0) / math.log(2) / found.n_bytes
    assert "text that B loses is left out: 5 bytes of 1 document: a word is lost in d0" in found.notes


@pytest.mark.parametrize("kind", KINDS)
@given(parts=st.lists(PARTS, min_size=1, max_size=12))
def test_tokens_that_carry_their_text_are_told_from_those_that_do_not(kind: str, parts: list[str]) -> None:
    """Independently: by the names of the tokens, of those that are counted as carrying theirs."""
    tokenizer, data = made_once(kind), "".join(parts).encode()
    tokens = tokenize(tokenizer, data.decode())
    if tokens.carried is None:
        assert not len(tokens.ids)
        return
    stops, lost = tokens.carried
    assert (stops[-1] if len(stops) else 0) == len(data)
    assert np.all(np.diff(stops, prepend=0) >= 0)
    assert np.any(lost) == (tokens.drift is not None)
    alphabet = {character: byte for byte, character in bytes_to_unicode().items()}
    names = tokenizer.convert_ids_to_tokens(tokens.ids.tolist())
    for name, start, stop, piece, gone in zip(names, [0, *stops], stops, tokens.pieces, lost, strict=False):
        if gone:
            continue
        assert piece == data[start:stop]
        assert name not in ("[UNK]", "<unk>")
        if kind.startswith("bytes"):
            spelled = bytes(alphabet[character] for character in name)
            assert piece in (spelled, spelled.removeprefix(b" "))  # of a space put before the text
        elif tokens.drift and not name.startswith("<0x"):
            assert piece.decode().strip(" ") == name.removeprefix("##").strip("▁")


def test_metrics_per_byte_are_of_the_tokens_that_carry_their_text() -> None:
    """One file in which one word is unknown: by the model itself, without that word and its bytes."""
    tokenizer = words(kinds.WordLevel)
    text = "the cat sat on the cat , the cat sat ;; on the cat sat on , the cat"
    model = tiny_model("Llama", vocab_size=8, bos_token_id=None, eos_token_id=None)
    found = score(model, [text], tokenizer=tokenizer)
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        logprobs = model.double()(ids).logits[0, :-1].log_softmax(-1)
    costs = -logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    carried = ids[0, 1:] != 0
    assert int((~carried).sum()) == 1
    n_bytes = len(text) - len("the") - len(" ;;")
    assert found.figures["bits_per_byte"].value == pytest.approx(
        float(costs[carried].sum()) / math.log(2) / n_bytes, rel=1e-6
    )
    assert found.nats == pytest.approx(float(costs.sum()), rel=1e-6)
    assert found.n_bytes == n_bytes
    (left_out,) = [part for part in found.to_json()["excluded"] if part["reason"] == LOST]
    assert text[left_out["byte_start"] : left_out["byte_end"]] == " ;;"
    assert found.to_json()["by_document"][0]["bytes"] == n_bytes
