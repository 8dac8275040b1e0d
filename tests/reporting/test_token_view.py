"""What a report packs of a run's tokens: their values, a sample of large runs, and the change against another run."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import cynosure
from cynosure.measure import Scores, Store, open_run
from cynosure.reporting.tokens import sample
from cynosure.reporting.tokens.view import token_view
from cynosure.text import token_texts
from tests.reporting.token_page import unpacked
from tests.tiny import byte_tokenizer, piece_tokenizer, tiny, tiny_model

TEXTS = ["the cat saw thé 猫.\n" * 12, "</script><b>the</b>\r\n\x00\u202e", "", "👩‍👩‍👧 the end" * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of several shards."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    cynosure.score(tiny(), TEXTS, out=out, batch_tokens=16)
    return out


def table_of(scores: Scores) -> dict[str, list[Any]]:
    return pa.concat_tables(scores.shards()).to_pydict()


def test_columns_are_those_of_the_shards(folder: Path) -> None:
    scores = open_run(folder)
    assert scores.store is not None
    assert len(scores.store.files) > 1
    rows, view = table_of(scores), token_view(scores)
    header, columns = unpacked(view)
    assert view.n_shown == view.n_tokens == header["n"] == len(rows["nll"])
    assert view.note == ""
    for name in ("nll", "entropy", "confidence"):
        expected = np.array([np.nan if x is None else x for x in rows[name]], np.float32)
        np.testing.assert_array_equal(columns[name], expected)
    for name in ("rank", "context"):
        assert columns[name].tolist() == [-1 if x is None else x for x in rows[name]]
    assert columns["bytes"].tobytes() == b"".join(rows["token_bytes"]) == "".join(TEXTS).encode()
    assert columns["length"].tolist() == [len(piece) for piece in rows["token_bytes"]]
    reasons = [None if at < 0 else header["reasons"][at] for at in columns["reason"]]
    assert reasons == rows["excluded"]
    names = [header["documents"][at] for at in columns["document"]]
    assert names == [scores.document_names[number] for number in rows["document"]]


def test_alternatives_are_those_of_the_shards(folder: Path) -> None:
    rows = table_of(open_run(folder))
    header, columns = unpacked(token_view(open_run(folder)))
    places = columns["top"].reshape(-1, 5)
    scored = [i for i, nll in enumerate(rows["nll"]) if nll is not None]
    assert (np.delete(places, scored, axis=0) == -1).all()
    for i in scored:
        expected = zip(token_texts(byte_tokenizer(), np.array(rows["top_ids"][i])), rows["top_ids"][i], strict=True)
        assert [header["texts"][at] for at in places[i]] == [text or id_ for text, id_ in expected]
        assert columns["top_logprobs"].reshape(-1, 5)[i].tolist() == rows["top_logprobs"][i]
        own = rows["top_ids"][i].index(rows["token_id"][i]) if rows["token_id"][i] in rows["top_ids"][i] else -1
        assert columns["own"][i] == own


def test_alternatives_are_ids_if_their_texts_are_not_stored(folder: Path, tmp_path: Path) -> None:
    """As in runs of earlier versions."""
    old = shutil.copytree(folder, tmp_path / "old", ignore=shutil.ignore_patterns("token_texts.parquet"))
    rows = table_of(open_run(folder))
    header, columns = unpacked(token_view(open_run(old)))
    at = next(i for i, nll in enumerate(rows["nll"]) if nll is not None)
    assert [header["texts"][place] for place in columns["top"].reshape(-1, 5)[at]] == rows["top_ids"][at]


def test_alternatives_are_texts_if_the_tokenizer_is_known() -> None:
    scores = cynosure.score(tiny(), TEXTS, keep=True)
    rows = table_of(scores)
    header, columns = unpacked(token_view(scores))
    at = next(i for i, nll in enumerate(rows["nll"]) if nll is not None)
    (expected,) = token_texts(byte_tokenizer(), np.array([rows["argmax"][at]]))
    assert header["texts"][columns["top"][at]] == expected
    assert columns["top_logprobs"][at] == np.log(np.float32(rows["confidence"][at]))


def test_a_run_without_tokens_kept_is_refused() -> None:
    with pytest.raises(ValueError, match="were not kept"):
        token_view(cynosure.score(tiny(), TEXTS, keep=False))


def test_a_large_run_is_sampled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The excerpts are whole, in order and within the limit, have the worst tokens."""
    monkeypatch.setattr(sample, "MOST_TOKENS", 120)
    monkeypatch.setattr(sample, "EXCERPT_TOKENS", 20)
    monkeypatch.setattr(sample, "BEFORE", 2)
    monkeypatch.setattr(sample, "AFTER", 1)
    scores = open_run(folder)
    del scores.statistics.worst_tokens[1:], scores.statistics.worst_spans[1:]
    view = token_view(scores)
    header, columns = unpacked(view)
    rows = table_of(open_run(folder))
    n = len(rows["nll"])
    places, last = [], 0
    ends = [place for place, _ in header["excerpts"][1:]] + [header["n"]]
    for (place, left_out), end in zip(header["excerpts"], ends, strict=True):
        places += range(last + left_out, last + left_out + end - place)
        last = places[-1] + 1
    assert header["left_out_after"] == n - last
    assert view.n_shown == header["n"] == len(places) <= 120 < view.n_tokens == n
    assert columns["length"].tolist() == [len(rows["token_bytes"][i]) for i in places]
    expected = np.array([np.nan if rows["nll"][i] is None else rows["nll"][i] for i in places], np.float32)
    np.testing.assert_array_equal(columns["nll"], expected)
    assert np.nanmax(columns["nll"]) == max(x for x in rows["nll"] if x is not None)
    assert f"{len(places)} of {n} tokens" in view.note


def test_only_the_shards_of_the_excerpts_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = open_run(folder)
    assert scores.store is not None
    sizes = [scores.store.n_rows(number) for number in sorted(scores.store.files)]
    assert sum(sizes) == sample.count(scores)
    read: list[int] = []
    load = Store.read
    monkeypatch.setattr(Store, "read", lambda store, number, *a: read.append(number) or load(store, number, *a))
    start = sum(sizes[:-1])
    table = sample.read(scores, [sample.RowRange(start + 1, start + 3)])
    assert (len(table), read) == (2, [0, len(sizes) - 1])  # the first says which columns there are


def test_the_change_of_each_token(folder: Path) -> None:
    """With the same tokens it is the difference of their losses."""
    a, b = open_run(folder), cynosure.score(tiny(seed=1), TEXTS, keep=True)
    _, columns = unpacked(token_view(b, a))
    rows_a, rows_b = table_of(a), table_of(b)
    inside = columns["segment"] >= 0
    assert inside.tolist() == [nll is not None for nll in rows_b["nll"]]
    for name, rows in (("nats_a", rows_a), ("nats_b", rows_b)):
        assert columns[name][inside].tolist() == [x for x in rows["nll"] if x is not None]
    assert np.isnan(columns["nats_a"][~inside]).all()


def test_the_change_where_the_tokens_differ() -> None:
    """Tokens between two common ends share a segment, whose sums are those of both runs."""
    text = ["the cat sat thé 猫 " * 8]
    other = cynosure.LanguageModel(tiny_model(), piece_tokenizer(dummy_prefix=False), "pieces")
    a, b = cynosure.score(tiny(), text, keep=True), cynosure.score(other, text, keep=True)
    _, columns = unpacked(token_view(b, a))
    inside = np.flatnonzero(columns["segment"] >= 0)
    rows_a, rows_b = table_of(a), table_of(b)
    several = 0
    for segment in np.unique(columns["segment"][inside]):
        rows = np.flatnonzero(columns["segment"] == segment)
        start, end = rows_b["byte_start"][rows[0]], rows_b["byte_end"][rows[-1]]
        of_a = [i for i, at in enumerate(rows_a["byte_start"]) if start <= at < end]
        assert rows_a["byte_end"][of_a[-1]] == end
        assert columns["nats_b"][rows] == pytest.approx(np.sum([rows_b["nll"][i] for i in rows]), rel=1e-6)
        assert columns["nats_a"][rows] == pytest.approx(np.sum([rows_a["nll"][i] for i in of_a]), rel=1e-6)
        several += len(rows) > 1
    assert several


def test_runs_of_other_texts_have_no_change(folder: Path) -> None:
    with pytest.raises(ValueError, match="document 1 is not the same text"):
        token_view(cynosure.score(tiny(), ["the"] * 4, keep=True), open_run(folder))
