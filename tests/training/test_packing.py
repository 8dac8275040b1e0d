"""Packed rows: full, every token once an epoch, and no document predicted from another, whatever the documents."""

import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cynosure.training.packing import IGNORED, Packed, Separators, Tokenised, document_ids
from tests.tiny import byte_tokenizer

END = 0  # opens and ends documents where they share one
BOS, EOS = 1, 2


def tokenised(lengths: list[int], shared: bool, prompts: list[int] | None = None) -> Tokenised:
    """Documents whose tokens are all different, so that each can be told from every other."""
    ids: list[int] = []
    predicted: list[bool] = []
    edges = [0]
    for number, length in enumerate(lengths):
        n_prompt = prompts[number] if prompts else 0
        body = [1000 * (number + 1) + i for i in range(length)]
        ids += [END, *body] if shared else [BOS, *body, EOS]
        predicted += [shared, *(i >= n_prompt for i in range(length))] + [True] * (not shared)
        edges.append(len(ids))
    prompted = np.array(prompts or [0] * len(lengths)) > 0
    separators = Separators(END, END) if shared else Separators(BOS, EOS)
    chats = np.zeros_like(prompted)
    return Tokenised(np.array(ids, np.int32), np.array(edges), np.array(predicted), prompted, separators, chats)


def epoch_rows(packed: Packed, epoch: int) -> list[Any]:
    return [packed[i] for i in range(packed.first_row(epoch), packed.first_row(epoch + 1))]


documents = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(lengths=documents, row=st.integers(4, 24), shared=st.booleans(), seed=st.integers(0, 9))
def test_each_token_is_predicted_once_an_epoch(lengths: list[int], row: int, shared: bool, seed: int) -> None:
    """Over three epochs of a stream that rows need not divide, the seams between epochs included."""
    texts = tokenised(lengths, shared)
    if len(texts.ids) < row:
        with pytest.raises(ValueError, match="fewer than one row"):
            Packed(texts, row, seed)
        return
    packed, n_tokens = Packed(texts, row, seed), len(texts.ids)
    n_rows = packed.first_row(3)
    seen: Counter[int] = Counter()
    for i in range(n_rows):
        found = packed[i]
        assert len(found.input_ids) == len(found.targets) == row  # full
        seen.update(found.targets[found.targets != IGNORED].tolist())
    # Rows cover positions 1 to n_rows * row of a stream that repeats: three epochs, and less than a row more.
    over = n_rows * row - 3 * n_tokens
    assert 0 <= over < row
    for token in set(texts.ids.tolist()) - {END, BOS, EOS}:
        assert 3 <= seen[token] <= 3 + (over > 0)
    ends = seen[END if shared else EOS]
    assert 3 * len(lengths) - (not over) <= ends <= 3 * len(lengths) + over
    assert seen[BOS] == 0


@given(lengths=documents, row=st.integers(4, 24), shared=st.booleans())
def test_nothing_is_predicted_from_another_document(lengths: list[int], row: int, shared: bool) -> None:
    texts = tokenised(lengths, shared)
    if len(texts.ids) < row:
        return
    packed = Packed(texts, row, 0)
    for i in range(packed.first_row(2)):
        ids, targets, places = packed[i]
        assert places[0] == 0
        document = None
        for seen, target, place in zip(ids.tolist(), targets.tolist(), places.tolist(), strict=True):
            if seen in (END, BOS):
                assert place == 0  # so that attention begins anew
                document = None
            elif seen >= 1000:
                assert document in (None, seen // 1000)
                document = seen // 1000
            if target == IGNORED:
                assert seen == EOS  # which is followed by another document
            elif target >= 1000:
                assert document in (None, target // 1000)
                document = target // 1000
        assert np.all((np.diff(places) == 1) | (places[1:] == 0))


@given(prompts=st.lists(st.integers(0, 6), min_size=3, max_size=3), shared=st.booleans())
def test_prompts_are_seen_and_not_predicted(prompts: list[int], shared: bool) -> None:
    texts = tokenised([8, 8, 8], shared, prompts)
    packed = Packed(texts, 9, 1)
    for i in range(packed.first_row(2)):
        for target in packed[i].targets.tolist():
            if target >= 1000:
                assert target % 1000 >= prompts[target // 1000 - 1]


def test_the_order_is_the_seeds_and_another_each_epoch() -> None:
    texts = tokenised([30, 30, 30, 30, 30], True)
    orders = [
        [row.input_ids.tolist() for row in epoch_rows(Packed(texts, 8, seed), e)] for seed in (0, 1) for e in (0, 1)
    ]
    again = [row.input_ids.tolist() for row in epoch_rows(Packed(texts, 8, 0), 0)]
    assert again == orders[0]
    assert all(orders[0] != other for other in orders[1:])


@pytest.mark.parametrize(
    ("shared", "digest"),
    [
        (True, "15b33351ebe31d565d53fda9df7ff00d57aaa64f9f6ceccae23f9b803b4fbf91"),
        (False, "0a9e8a1053b3ea71e1183c18cabce86ab1bc2ee12d03f676bf41e222e98c6900"),
    ],
)
def test_rows_are_those_of_earlier_versions(shared: bool, digest: str) -> None:
    """So that a run that one of them began goes on bit for bit."""
    texts = tokenised([13, 5, 29, 7, 40, 1, 18], shared, [0, 2, 0, 3, 10, 0, 4])
    packed, found = Packed(texts, 16, 3), hashlib.sha256()
    for i in range(packed.first_row(3)):
        for part in packed[i]:
            found.update(part.astype(np.int64).tobytes())
    assert found.hexdigest() == digest


def test_rows_are_found_in_any_order() -> None:
    """What a run that goes on at any step relies on."""
    texts = tokenised([13, 5, 29, 7], False)
    there, back = Packed(texts, 8, 3), Packed(texts, 8, 3)
    n_rows = there.first_row(4)
    forwards = [there[i].input_ids.tolist() for i in range(n_rows)]
    backwards = [back[i].input_ids.tolist() for i in reversed(range(n_rows))]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, ("<s>", "</s>")),
        ({"bos_token": "<s>", "eos_token": "<s>"}, ("<s>",)),
        ({"eos_token": "</s>"}, ("</s>",)),
        ({}, ()),
    ],
)
def test_documents_open_and_end_as_the_tokenizer_has_it(special: dict[str, str], expected: tuple[str, ...]) -> None:
    tokenizer = byte_tokenizer(special=special)
    separators = Separators.of(tokenizer)
    ids, predicted = document_ids(tokenizer, separators, "abc")
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert [token for token in tokens if token.startswith("<")] == list(expected)
    assert "".join(token for token in tokens if not token.startswith("<")) == "abc"
    shared = special.get("bos_token", "</s>") == special.get("eos_token") and bool(expected)
    assert predicted.tolist() == [shared] + [True] * (len(ids) - 1)
    assert separators.shared == shared


def test_the_tokens_of_a_prompt_are_counted() -> None:
    tokenizer = byte_tokenizer()
    ids, predicted = document_ids(tokenizer, Separators.of(tokenizer), "abcde", 2)
    assert tokenizer.convert_ids_to_tokens(ids[predicted]) == ["c", "d", "e", "</s>"]
