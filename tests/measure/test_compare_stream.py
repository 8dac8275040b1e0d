"""A comparison reads two runs table by table: however they are cut, it is what all their tokens at once would give."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cynosure.measure.comparison.align import Side, align
from cynosure.measure.comparison.compare import compare
from cynosure.measure.comparison.comparison import Comparison
from cynosure.measure.results.scores import SHOWN, Scores
from cynosure.measure.statistics.bootstrap import choose, interval, paired
from cynosure.measure.statistics.classes import CLASSES, byte_class
from cynosure.measure.storage.rows import Shard
from cynosure.measure.storage.store import Store
from tests.measure.test_compare import Tok, by_hand, made

TEXT = "The café 猫 sat, 1 2 3 on the mat; \n\nand 🐈 of the dog there is no more.  "


def random_tokens(text: bytes, generator: np.random.Generator, mean: int) -> list[Tok]:
    """A text cut at random, as tokenizers of a kind would: some tokens without bytes, impossible, or not scored."""
    found, at = [Tok(b"", None)], 0
    while at < len(text):
        size = int(generator.integers(1, 2 * mean))
        nll = [None, math.inf, float(np.float32(generator.gamma(2, 1)))][
            int(np.searchsorted([0.03, 0.032], generator.random()))
        ]
        found.append(Tok(text[at : at + size], nll, int(generator.integers(9)), int(generator.integers(9))))
        at += size
        if generator.random() < 0.05:
            found.append(Tok(b"", 1.5))
    return found


def runs(n_documents: int, seed: int, *, same: bool) -> tuple[list[list[Tok]], list[list[Tok]]]:
    """Documents of two runs; with the `same` tokens, or others. One document has no text."""
    generator = np.random.default_rng(seed)
    texts = [(TEXT * int(generator.integers(1, 15))).encode() for _ in range(n_documents)]
    texts[n_documents // 2] = b""
    a = [random_tokens(text, generator, 4) for text in texts]
    if not same:
        return a, [random_tokens(text, generator, 6) for text in texts]
    noise = lambda token: token.nll and float(np.float32(token.nll * generator.gamma(9, 1 / 9)))  # noqa: E731
    return a, [[t._replace(nll=noise(t), argmax=int(generator.integers(9))) for t in tokens] for tokens in a]


def recut(run: Scores, generator: np.random.Generator, mean: int) -> Scores:
    """The same run in other tables, some without a token."""
    whole = pa.concat_tables(run.tables or [])
    edges = np.unique(np.append([0, len(whole)], generator.integers(0, len(whole) + 1, 1 + len(whole) // mean)))
    run.tables = [whole.slice(i, j - i) for i, j in zip(edges, [*edges[1:], len(whole)], strict=True)]
    return run


def all_at_once(a: list[list[Tok]], b: list[list[Tok]], *, same: bool) -> dict[str, Any]:
    """What is compared, from all segments in memory."""
    parts = [(number, *part) for number, pair in enumerate(zip(a, b, strict=True)) for part in by_hand(*pair)]
    document, start, end, nats_a, nats_b, tokens_a, tokens_b = (np.array(column) for column in zip(*parts, strict=True))
    texts = [b"".join(token.piece for token in tokens) for tokens in a]
    first = [{} for _ in a]
    for number, tokens in enumerate(a):
        at = 0
        for token in tokens:
            if token.piece:
                first[number][at] = byte_class(token.piece)
                at += len(token.piece)
    both = np.isinf(nats_a) & np.isinf(nats_b)
    apart = np.where(both, 0, nats_b - np.where(both, 0, nats_a))
    apart[both] = 0
    n_bytes = end - start

    def sums(keys: Any, *columns: Any) -> Any:
        starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
        return keys[starts], [np.add.reduceat(np.asarray(column, float), starts) for column in columns]

    keys, cells = sums((document << 32) + start // 64, np.where(np.isinf(apart), 0, apart), n_bytes, nats_a, nats_b)
    numbers, documents = sums(keys >> 32, *cells)
    _, clusters = choose(np.stack(documents, 1), np.stack(cells, 1), keys >> 32)
    _, x, y_a, y_b = clusters.T
    kind = np.array([first[d][s] for d, s in zip(document, start, strict=True)])
    order = np.argsort(kind, kind="stable")
    kinds, of_kind = sums(kind[order], n_bytes[order], nats_a[order], nats_b[order])
    shown = {}
    for name, worse in (("losses", apart), ("gains", -apart)):
        at = np.argsort(-worse, kind="stable")
        at = at[worse[at] > 0][:SHOWN]
        shown[name] = [(f"d{document[i]}", start[i], texts[document[i]][start[i] : end[i]]) for i in at]
    finite = math.isfinite(y_a.sum() + y_b.sum())
    difference, p = paired(y_b / math.log(2), y_a / math.log(2), x) if finite else (None, None)
    return {
        "totals": (len(numbers), *(x.sum() for x in (n_bytes, tokens_a, tokens_b, np.isinf(nats_a), np.isinf(nats_b)))),
        "difference": difference and difference[:3],
        "relative": finite and interval(y_b - y_a, y_a)[:3],
        "p": p,
        "classes": [(CLASSES[k], *values) for k, *values in zip(kinds, *of_kind, strict=True)],
        "documents": [(f"d{k}", *values) for k, *values in zip(numbers, *documents[1:], strict=True)],
        **shown,
    }  # fmt: skip


def check(found: Comparison, expected: dict[str, Any]) -> None:
    totals = ("documents", "n_bytes", "tokens_a", "tokens_b", "impossible_a", "impossible_b")
    assert tuple(getattr(found, name) for name in totals) == expected["totals"]
    change = found.changes["bits_per_byte"]
    if expected["difference"]:
        assert (change.difference, change.p) == (expected["difference"], expected["p"])
        assert change.relative == pytest.approx(expected["relative"], rel=1e-12)
    for parts, key, name in ((found.by_class, "class", "classes"), (found.by_document, "document", "documents")):
        assert [(part[key], part["bytes"]) for part in parts] == [tuple(values[:2]) for values in expected[name]]
        for part, (_, n_bytes, *nats) in zip(parts, expected[name], strict=True):
            bits = [x / math.log(2) / n_bytes for x in nats]
            told = [math.inf if part[side] is None else part[side] for side in ("bits_per_byte_a", "bits_per_byte_b")]
            assert told == pytest.approx(bits, rel=1e-12)
    for name in ("losses", "gains"):
        told = [(part["document"], part["byte_start"], part["text"]) for part in getattr(found, name)]
        assert told == [(d, at, text.decode("utf-8", "backslashreplace")) for d, at, text in expected[name]]


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("n_documents", [3, 32])
def test_a_comparison_is_that_of_all_tokens_at_once(n_documents: int, same: bool) -> None:
    a, b = runs(n_documents, 1, same=same)
    check(compare(made(*a), made(*b)), all_at_once(a, b, same=same))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(2, 5), st.booleans(), st.sampled_from([1, 7, 200]), st.sampled_from([3, 50]))
def test_the_cut_into_tables_changes_no_bit(seed: int, n_documents: int, same: bool, mean_a: int, mean_b: int) -> None:
    """Though one table ends inside a document, a segment, a cell, or between tokens without bytes."""
    a, b = runs(n_documents, seed, same=same)
    generator = np.random.default_rng(seed)
    pair = recut(made(*a), generator, mean_a), recut(made(*b), generator, mean_b)
    assert compare(*pair).to_json() == compare(made(*a), made(*b)).to_json()


def test_the_text_around_a_segment_reaches_over_tables() -> None:
    text = ("猫" * 30 + "!" + "é" * 30).encode()
    a = [Tok(text[i : i + 1]) for i in range(len(text))]
    b = [token._replace(nll=9.0 if token.piece == b"!" else 1.0) for token in a]
    (loss,) = compare(recut(made([Tok(b"x")], a), np.random.default_rng(0), 3), made([Tok(b"x")], b)).losses
    assert (loss["before"], loss["text"], loss["after"]) == ("猫" * 27, "!", "é" * 15)


def test_tokens_that_differ_late_leave_nothing_of_tokens() -> None:
    a = [Tok(b"ab", 1.0, id=1, argmax=1)] * 300
    b = [*a[:-1], Tok(b"ab", 1.0, id=2, argmax=2)]
    same, other = compare(made(a), made(a)), compare(recut(made(a), np.random.default_rng(0), 9), made(b))
    assert list(same.changes) == ["bits_per_byte", "nats_per_token", "token_perplexity", "top1_accuracy"]
    assert list(other.changes) == ["bits_per_byte"]
    assert other.agreement is None


def test_segments_come_before_the_runs_have_been_read() -> None:
    """What is in memory is a table of each run, and what of it has no counterpart yet."""
    tokens = [Tok(b"ab", 1.0)] * 1000
    whole = made(tokens).tables or []
    n_read = 0

    class Counted:
        def __iter__(self) -> Iterator[pa.Table]:
            nonlocal n_read
            for start in range(0, 1000, 10):
                n_read += 1
                yield whole[0].slice(start, 10)

    side = Side.of_run(made(tokens))._replace(tables=Counted())
    for number, found in enumerate(align(side, side)):
        assert n_read <= 2 * number + 6
        assert len(found.document) <= 20
    assert n_read == 200


def test_a_run_on_disk_is_compared_as_one_in_memory(tmp_path: Path) -> None:
    a, b = (recut(made(*side), np.random.default_rng(4), 100) for side in runs(3, 5, same=False))
    for run, name in ((a, "a"), (b, "b")):
        cutting = {"protocol": "sliding", "window": 8, "stride": 4, "batch_tokens": 8, "unit_tokens": 128}
        model = dict.fromkeys(("name", "dtype", "weights_sha256", "tokenizer_sha256"), name)
        setting = run.setting.to_json()
        manifest = {"model": model, "setting": setting, "cutting": cutting, "corpus": {}}
        (tmp_path / name).mkdir()
        store = Store.begin(tmp_path / name, manifest)
        for number, table in enumerate(run.tables or []):
            present = set(table["document"].to_pylist())
            facts = tuple(fact for key, fact in run.statistics.facts.items() if key in present)
            store.write(number, Shard(table, facts), 0.0)
        store.finish(len(run.tables or []))
    assert compare(tmp_path / "a", tmp_path / "b").to_json() == compare(a, b).to_json()
