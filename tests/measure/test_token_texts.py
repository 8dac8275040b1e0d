"""The texts of the likeliest tokens stand beside the shards; a run without them, or with damaged ones, is whole."""

import random
from pathlib import Path

import pyarrow as pa
import pytest

from cynosure.measure import Store, open_run, remove_run, score
from cynosure.measure.storage.store import check_own
from cynosure.measure.storage.texts import TOKEN_TEXTS, decode_texts, encode_texts, likeliest_ids
from cynosure.models import LanguageModel
from tests.measure.test_folder import read_only
from tests.measure.test_store import DOCUMENTS, OPTIONS, interrupted
from tests.tiny import tiny

FEW = DOCUMENTS[:5]
TEXTS = {3: " the", 7: "猫", 9: "\\xf0\\x9f", 11: "", 12: "a\0\r\n<b>"}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny(spread=0.5)


def test_scoring_writes_the_texts_of_the_likeliest_tokens(model: LanguageModel, tmp_path: Path) -> None:
    """The model has more ids than the tokenizer; those beyond have no text."""
    scores = score(model, FEW, out=tmp_path / "run", **OPTIONS)
    tokens, texts = scores.to_pandas(), Store.open(tmp_path / "run").token_texts()
    likeliest = {id_ for ids in tokens["top_ids"] for id_ in ids.tolist()} | set(tokens["argmax"])
    assert max(likeliest) >= len(model.tokenizer)
    assert texts.keys() == {id_ for id_ in likeliest if id_ < len(model.tokenizer)}
    for id_, text in zip(tokens["argmax"], tokens["argmax_token"], strict=True):
        assert texts.get(id_, "") == text
    assert not list((tmp_path / "run").glob("*.partial"))


def scored(model: LanguageModel, folder: Path) -> Store:
    store = score(model, FEW, out=folder / "run", **OPTIONS).store
    assert store is not None
    return store


def test_texts_are_written_again_if_they_are_missing_damaged_or_another_runs(
    model: LanguageModel, tmp_path: Path
) -> None:
    store = scored(model, tmp_path)
    path, texts = store.folder / TOKEN_TEXTS, store.token_texts()
    whole = path.read_bytes()
    for data in (None, b"", whole[:-9], encode_texts(texts, "another run")):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        assert store.token_texts() == {}
        before = open_run(store.folder).to_json()
        assert scored(model, tmp_path).token_texts() == texts
        assert (path.read_bytes(), open_run(store.folder).to_json()) == (whole, before)


def test_what_is_scored_later_has_its_texts_too(model: LanguageModel, tmp_path: Path) -> None:
    interrupted(model, tmp_path / "run", 3, **OPTIONS)
    whole = score(model, DOCUMENTS, out=tmp_path / "run", **OPTIONS).store
    assert whole is not None
    texts = whole.token_texts()
    last = max(whole.folder.glob("tokens-*"))
    last.unlink()
    whole.put_token_texts({1: "of what was there"})
    score(model, DOCUMENTS, out=tmp_path / "run", **OPTIONS)
    assert whole.token_texts() == texts


def test_a_read_only_run_stays_without_texts(model: LanguageModel, tmp_path: Path) -> None:
    store = scored(model, tmp_path)
    (store.folder / TOKEN_TEXTS).unlink()
    with read_only(store.folder):
        assert scored(model, tmp_path).token_texts() == {}


def test_the_file_belongs_to_the_run(model: LanguageModel, tmp_path: Path) -> None:
    store = scored(model, tmp_path)
    leftover = store.folder / f"{TOKEN_TEXTS}.0123456789abcdef.partial"
    leftover.write_bytes(b"half")
    check_own(store.folder)
    scored(model, tmp_path)
    assert not leftover.exists()
    remove_run(store.folder)
    assert not list(store.folder.iterdir())


def test_texts_come_back_and_no_damage_changes_one() -> None:
    data, chance = encode_texts(TEXTS, "run"), random.Random(0)
    assert decode_texts(data, "run") == TEXTS
    assert decode_texts(encode_texts({}, "run"), "run") == decode_texts(data, "other") == {}
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        assert decode_texts(flipped, "run") in ({}, TEXTS)
        assert decode_texts(data[:at], "run") == {}


def test_the_ids_of_the_likeliest_tokens_are_distinct_and_known() -> None:
    pairs = pa.FixedSizeListArray.from_arrays(pa.array([7, 70, -1, -1, 2, 7], pa.int32()), 2)
    tables = [
        pa.table({"argmax": pa.array([7, None, 2], pa.int32()), "top_ids": pairs}),
        pa.table({"argmax": pa.array([3], pa.int32())}),
        pa.table({"argmax": pa.array([], pa.int32())}),
    ]
    assert likeliest_ids(tables).tolist() == [2, 3, 7, 70]
    assert likeliest_ids([]).tolist() == []
