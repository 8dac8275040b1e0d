"""Texts held out: by documents, never a copy on the other side."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.text import Document
from cynosure.training.division import Division, fingerprint


def named(texts: list[str]) -> list[Document]:
    return [Document(f"{i}", text) for i, text in enumerate(texts)]


@given(
    numbers=st.lists(st.integers(0, 40), min_size=1, max_size=80),
    share=st.sampled_from([0.1, 0.2, 0.5]),
    n_apart=st.integers(0, 3),
)
def test_no_copy_is_on_the_other_side(numbers: list[int], share: float, n_apart: int) -> None:
    """Whatever is repeated how often, and where whole documents are too few as well."""
    texts = [f"Text {n}\n" + f"of {n} words " * 20 + ("  " if i % 2 else "") for i, n in enumerate(numbers)]
    division = Division(named(texts), share, named(texts[:n_apart]))
    train, valid = ({fingerprint(d.text) for d in side} for side in (division.train(), division.valid()))
    assert not train & valid
    if not division.by_tails:
        kept = [d.name for d in division.train()] + [d.name for d in division.valid()][n_apart:]
        left = [name for name, group in zip(map(str, range(len(texts))), division.groups, strict=True)
                if group in division.left_out]  # fmt: skip
        assert set(kept) | set(left) == {d.name for d in named(texts)}


def test_every_tenth_document_that_differs() -> None:
    division = Division(named([f"text {n}" for n in range(30)]), 0.1)
    assert [d.name for d in division.valid()] == ["9", "19", "29"]
    assert not division.notes


def test_too_few_documents_give_their_ends() -> None:
    lines = "\n".join(f"line {n} of it" for n in range(100))
    division = Division(named([lines]), 0.1)
    (train,), (valid,) = division.train(), division.valid()
    assert train.text + valid.text == lines
    assert valid.text.startswith("line ")
    assert 0.08 < len(valid.text) / len(lines) < 0.13
    assert "1 document" in division.notes[0]


def test_no_end_of_a_copy_is_trained_on() -> None:
    """Which would be cut elsewhere, as it has more white space at its end."""
    lines = "\n".join(f"line {n} of it" for n in range(100))
    division = Division(named([lines, lines + "\n" * 400]), 0.1)
    train, (valid,) = "".join(d.text for d in division.train()), division.valid()
    assert valid.text.split("\n")[1] not in train.split("\n")
    assert train + valid.text == lines


@pytest.mark.parametrize(("share", "n_held"), [(0.1, 10), (0.3, 30), (0.4, 40), (0.5, 50)])
def test_the_share_that_is_asked_for(share: float, n_held: int) -> None:
    assert len(list(Division(named([f"text {n}" for n in range(100)]), share).valid())) == n_held


def test_what_stands_apart_is_not_trained_on() -> None:
    division = Division(named([f"text {n}" for n in range(5)]), 0.0, [Document("given", "TEXT   3")])
    assert [d.name for d in division.train()] == ["0", "1", "2", "4"]
    assert [d.name for d in division.valid()] == ["given"]
    assert "1 of the texts" in division.notes[0]


@pytest.mark.parametrize("share", [-0.1, 0.6, float("nan")])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(ValueError, match="share held out"):
        Division(named(["text"]), share)
