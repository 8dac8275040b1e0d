"""What of the held-out documents is validated on, and what bytes alone tell of them."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.text import Document
from cynosure.training.data import LEAST_BYTES, Reading, byte_counts, shortened, unigram_bits, write_data
from cynosure.training.division import Division

BUDGET = 20_000


def sizes(documents: list[Document]) -> list[int]:
    return [len(d.text[d.n_prompt_chars :].encode()) for d in documents]


@given(lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=200), prompt=st.integers(0, 50))
def test_about_as_much_as_asked_for(lengths: list[int], prompt: int) -> None:
    """Never more, and no less than half of it where there is that much; of each enough to tell something."""
    documents = [Document(f"{n}", "p" * prompt + "x" * size, prompt) for n, size in enumerate(lengths)]
    kept = shortened(documents, BUDGET)
    assert sum(sizes(kept)) <= BUDGET
    if sum(lengths) <= BUDGET:
        assert kept == documents
    assert all(d.text[:prompt] == "p" * prompt for d in kept)
    whole = {d.name: d for d in documents}
    assert all(d == whole[d.name] or size >= LEAST_BYTES for d, size in zip(kept, sizes(kept), strict=True))


def test_of_very_many_some() -> None:
    """Two hundred thousand stories, of which each would have less than a byte."""
    kept = shortened([Document(f"{n}", "once upon a time " * 60) for n in range(200_000)], BUDGET)
    assert BUDGET / 2 < sum(sizes(kept)) <= BUDGET
    assert min(sizes(kept)) >= LEAST_BYTES
    assert int(kept[-1].name) > 190_000


def test_characters_stay_whole() -> None:
    (kept,) = shortened([Document("a", "\u00e9" * BUDGET)], BUDGET + 1)
    assert kept.text == "\u00e9" * (BUDGET // 2)


@pytest.mark.parametrize("parse", [False, True])
def test_special_tokens_in_a_text(tmp_path: Path, parse: bool) -> None:
    """As the characters they are, unless they are to be parsed; what opens and ends documents is put in either way."""
    from tests.tiny import byte_tokenizer

    text = "once</s> upon <s>a time"
    division = Division([Document("a", text), Document("b", "the end")], 0.0, [Document("c", "to validate on")])
    data = write_data(tmp_path / "data", division, byte_tokenizer(), Reading(parse))
    ids = data.tokenised().ids.tolist()
    assert (ids.count(0), ids.count(1)) == ((3, 3) if parse else (2, 2))
    (note,) = (note for note in data.facts.notes if "special" in note)
    how = "read as those tokens" if parse else "read as text"
    assert note.startswith(f"the texts hold 2 strings that are special tokens, such as '</s>': {how}")
    assert data.facts.bytes_known is not parse


def test_bits_by_the_frequency_of_bytes() -> None:
    """Of a in 2 of 3 bytes and b in 1, one of each of the 256 bytes added."""
    bits = unigram_bits(byte_counts("aab"), byte_counts("ab"))
    assert bits == pytest.approx(-(math.log2(3 / 259) + math.log2(2 / 259)) / 2, rel=1e-12)
