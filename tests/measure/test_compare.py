"""Comparisons of two runs, against sums made by hand from tokens laid out by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cynosure.measure.comparison.align import Segments, Side, align, comparable
from cynosure.measure.comparison.compare import compare
from cynosure.measure.comparison.comparison import Comparison
from cynosure.measure.results.scores import Scores, Setting
from cynosure.measure.statistics.bootstrap import choose, interval, paired
from cynosure.measure.storage.rows import LOST, DocumentFacts, schema

LN2 = math.log(2)


class Tok(NamedTuple):
    """A token of a run laid out by hand."""

    piece: bytes
    nll: float | None = 1.0  # nats, None where it was not scored
    id: int = 0
    argmax: int = 1
    lost: bool = False  # whether it is scored and does not carry its text


def made(*documents: Sequence[Tok], names: Sequence[str] = (), drift: str | None = None, **setting: Any) -> Scores:
    """A run of documents given as tokens."""
    found = Scores(Setting(**({"model": "hand", "protocol": "sliding", "window": 8, "stride": 4, "dtype": "float32",
                               "device": "cpu", "notes": ()} | setting)), tables=[])  # fmt: skip
    for number, tokens in enumerate(documents):
        data = b"".join(token.piece for token in tokens)
        name = names[number] if names else f"d{number}"
        found.statistics.facts[number] = DocumentFacts(
            number, name, 1, len(data), 0, 0, len(tokens), 0, sha256(data).hexdigest(), drift,
            n_lost=sum(len(token.piece) for token in tokens if token.lost) if any(t.lost for t in tokens) else None,
        )  # fmt: skip
        ends = list(accumulate(len(token.piece) for token in tokens))
        columns = {
            "document": [number] * len(tokens),
            "index": list(range(len(tokens))),
            "token_id": [token.id for token in tokens],
            "token_bytes": [token.piece for token in tokens],
            "byte_start": [0, *ends][: len(tokens)],
            "byte_end": ends,
            "nll": [token.nll for token in tokens],
            "argmax": [None if token.nll is None else token.argmax for token in tokens],
            "excluded": [LOST if token.lost else None if token.nll is not None else "why" for token in tokens],
        }
        fields = [schema(8, 0).field(name) for name in columns]
        found.tables.append(pa.table(columns, pa.schema(fields)))
    return found


def aligned(a: Scores, b: Scores) -> Segments:
    """All segments together, without the choices."""
    parts = [part[:-1] for part in align(Side.of_run(a), Side.of_run(b))]
    return Segments(*(np.concatenate(columns) for columns in zip(*parts, strict=True)), choices=None)


def tokens_of(text: bytes, *nats: float, size: int = 1) -> list[Tok]:
    """A text in tokens of `size` bytes with these losses, over and over."""
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    return [Tok(piece, nats[i % len(nats)], id=i % 7) for i, piece in enumerate(pieces)]


@st.composite
def tokenised(draw: st.DrawFn, text: bytes) -> list[Tok]:
    """The text cut at random, some tokens without bytes, some not scored; losses are whole numbers."""
    cuts = draw(st.sets(st.integers(1, len(text) - 1))) if len(text) > 1 else set()
    loss = st.integers(1, 1000) if draw(st.booleans()) else st.one_of(st.none(), st.integers(1, 1000))
    found = []
    for i, j in pairwise(sorted({0, len(text)} | cuts)):
        if draw(st.integers(0, 5)) == 0:
            found.append(Tok(b"", draw(loss)))
        found.append(Tok(text[i:j], draw(loss)))
    if draw(st.integers(0, 5)) == 0:
        found.append(Tok(b"", draw(loss)))
    return found


@st.composite
def pairs(draw: st.DrawFn) -> tuple[list[list[Tok]], list[list[Tok]]]:
    texts = draw(st.lists(st.binary(max_size=12), min_size=1, max_size=4))
    return [draw(tokenised(text)) for text in texts], [draw(tokenised(text)) for text in texts]


def by_hand(a: list[Tok], b: list[Tok]) -> list[tuple[Any, ...]]:
    """(start, end, nats a, nats b, tokens a, tokens b) of every segment of a document, byte by byte."""
    size = sum(len(token.piece) for token in a)
    spans = []
    for tokens in (a, b):
        ends = list(accumulate(len(token.piece) for token in tokens))
        spans.append([(end - len(token.piece), end, token) for end, token in zip(ends, tokens, strict=True)])
    shared = [at for at in range(size + 1) if at == 0 or all(any(e == at for _, e, _ in side) for side in spans)]
    found = []
    for start, end in pairwise(shared):
        parts, whole = [], True
        for side in spans:
            inside = [t for s, e, t in side if start <= s < end or (s == e == end == size)]
            scored = [t.nll for t in inside if t.nll is not None]
            whole &= bool(scored) and all(t.nll is not None for t in inside if t.piece)
            parts.append((sum(scored), len(scored)))
        if whole:
            found.append((start, end, parts[0][0], parts[1][0], parts[0][1], parts[1][1]))
    return found


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pairs())
def test_segments_are_cut_exactly_where_a_token_ends_in_both(documents: Any) -> None:
    expected = [(number, *part) for number, (a, b) in enumerate(zip(*documents, strict=True)) for part in by_hand(a, b)]
    runs = [made(*side) for side in documents]
    if not expected:
        with pytest.raises(ValueError, match="nothing in common"):
            aligned(*runs)
        return
    found = aligned(*runs)
    names = ("document", "byte_start", "byte_end", "nats_a", "nats_b", "tokens_a", "tokens_b")
    assert list(zip(*(getattr(found, name).tolist() for name in names), strict=True)) == expected


@settings(max_examples=50, deadline=None, derandomize=True)
@given(pairs())
def test_segments_add_up_to_both_runs_where_every_token_is_scored(documents: Any) -> None:
    sides = [[[token._replace(nll=token.nll or 7) for token in tokens] for tokens in side] for side in documents]
    if not any(token.piece for tokens in sides[0] for token in tokens):
        return
    found = aligned(*(made(*side) for side in sides))
    with_text = [[tokens for tokens in side if any(token.piece for token in tokens)] for side in sides]
    totals = [sum(token.nll or 0 for tokens in side for token in tokens) for side in with_text]
    assert [found.nats_a.sum(), found.nats_b.sum()] == totals
    assert found.n_bytes.sum() == sum(len(token.piece) for tokens in sides[0] for token in tokens)


def test_with_equal_tokens_the_segments_are_the_tokens() -> None:
    a, b = (made(tokens_of(b"hello world", *nats, size=2)) for nats in ((1, 2, 3), (3, 1, 2)))
    found = aligned(a, b)
    assert found.byte_end.tolist() == [2, 4, 6, 8, 10, 11]
    assert found.nats_a.tolist() == [1, 2, 3, 1, 2, 3]
    assert found.nats_b.tolist() == [3, 1, 2, 3, 1, 2]
    assert found.tokens_a.tolist() == found.tokens_b.tolist() == [1] * 6


def test_tokens_without_bytes_that_were_not_scored_are_ignored() -> None:
    plain, led = tokens_of(b"abcd", 2), [Tok(b"", None), *tokens_of(b"abcd", 3)]
    found = aligned(made(plain), made(led))
    assert found.nats_b.tolist() == [3, 3, 3, 3]


def test_the_class_is_of_the_first_token_of_a_with_bytes() -> None:
    a = [Tok(b""), Tok(b"a"), Tok(b"1"), Tok(b", "), Tok(b" ")]
    found = compare(made(a), made([Tok(b"a1"), Tok(b", "), Tok(b" ")]))
    assert {row["class"]: row["bytes"] for row in found.by_class} == {"letters": 2, "punctuation": 2, "whitespace": 1}


def random_runs(n_documents: int, n_tokens: int = 200, seed: int = 0) -> tuple[Scores, Scores]:
    """Runs of random losses, A in tokens of 3 bytes and B of 2: a segment is 6 bytes."""
    generator = np.random.default_rng(seed)
    text = bytes(generator.integers(97, 123, 6 * n_tokens).tolist())
    a, b = (
        [tokens_of(text, *generator.gamma(2, 1, len(text) // size), size=size) for _ in range(n_documents)]
        for size in (3, 2)
    )
    return made(*a), made(*b)


def sums_by_document(run: Scores) -> np.ndarray[Any, Any]:
    return np.array([sum(map(float, table["nll"].to_pylist())) for table in run.tables or []])


def test_documents_are_resampled_where_there_are_thirty() -> None:
    a, b = random_runs(30)
    found = compare(a, b)
    nats_a, nats_b, n_bytes = sums_by_document(a), sums_by_document(b), np.full(30, 1200.0)
    change = found.changes["bits_per_byte"]
    assert (found.resampling.kind, found.resampling.n_clusters, found.resampling.block_bytes) == ("documents", 30, None)
    assert change.a == pytest.approx(nats_a.sum() / LN2 / n_bytes.sum(), rel=1e-12)
    assert change.b == pytest.approx(nats_b.sum() / LN2 / n_bytes.sum(), rel=1e-12)
    expected, p = paired(nats_b / LN2, nats_a / LN2, n_bytes)
    assert change.difference == pytest.approx(expected[:3], rel=1e-9)
    assert change.p == p
    assert change.relative == pytest.approx(interval(nats_b - nats_a, nats_a)[:3], rel=1e-9)
    assert list(found.changes) == ["bits_per_byte"]  # the tokens differ
    assert found.agreement is None


def test_blocks_of_text_are_resampled_where_documents_are_few() -> None:
    """Base cells of 64 bytes, a segment of 6 in that of its first byte."""
    a, b = random_runs(3)
    found = compare(a, b)
    apart, cells = np.zeros((3, 19)), np.zeros((3, 19))
    for number, (of_a, of_b) in enumerate(zip(a.tables or [], b.tables or [], strict=True)):
        nats_a, nats_b = (np.array(table["nll"].to_pylist()) for table in (of_a, of_b))
        for segment in range(200):
            cell = 6 * segment // 64
            part = nats_b[3 * segment : 3 * segment + 3].sum() - nats_a[2 * segment : 2 * segment + 2].sum()
            apart[number, cell] += part / LN2
            cells[number, cell] += 6
    base = np.stack([apart.ravel(), cells.ravel()], axis=1)
    method, clusters = choose(base.reshape(3, 19, 2).sum(1), base, np.repeat(np.arange(3), 19))
    assert found.resampling.kind == "blocks"
    assert found.resampling.block_bytes == (method.block_tokens or 0) * 4
    assert found.resampling.n_clusters == len(clusters)
    expected, p = paired(clusters[:, 0], np.zeros(len(clusters)), clusters[:, 1])
    assert found.changes["bits_per_byte"].difference == pytest.approx(expected[:3], rel=1e-9)
    assert found.changes["bits_per_byte"].p == p
    assert found.resampling.optimistic in found.notes
    assert "from one document to another" in (found.resampling.optimistic or "")


def test_blocks_are_told_in_bytes() -> None:
    wave = [float(x) for x in 3 + np.sin(np.arange(2000) / 100)]
    text = b"x" * 2000
    found = compare(made(tokens_of(text, 1.0)), made(tokens_of(text, *wave)))
    assert found.resampling.block_bytes is not None
    assert found.resampling.block_bytes % 64 == 0
    assert f"blocks of {found.resampling.block_bytes} bytes" in (found.resampling.optimistic or "")


def test_a_run_beside_itself_is_no_different() -> None:
    a, _ = random_runs(3)
    found = compare(a, a)
    for change in found.changes.values():
        assert change.a == change.b
        assert change.difference.value == 0
        assert change.relative.value == 0
        assert change.p == 1
    assert found.changes["bits_per_byte"].difference == (0, 0, 0)
    assert found.wins == {"a": 0, "b": 0, "ties": 3}
    assert found.losses == found.gains == []
    assert found.agreement == (1, 0, 0, 0)


def test_the_other_way_round_everything_is_turned() -> None:
    a, b = random_runs(40)
    one, other = compare(a, b), compare(b, a)
    change, turned = one.changes["bits_per_byte"], other.changes["bits_per_byte"]
    assert (change.a, change.b) == (turned.b, turned.a)
    assert change.difference.value == -(turned.difference.value or 0)
    assert change.difference.low == pytest.approx(-(turned.difference.high or 0), rel=1e-6)
    assert change.p == pytest.approx(turned.p)
    assert one.wins == {"a": other.wins["b"], "b": other.wins["a"], "ties": 0}
    assert sum(one.wins.values()) == 40
    places = [[(part["document"], part["byte_start"]) for part in parts] for parts in (one.losses, other.gains)]
    assert places[0] == places[1]
    assert len(one.losses) == 20


def test_where_the_difference_comes_from_adds_up() -> None:
    a, b = random_runs(3)
    found = compare(a, b)
    total = sums_by_document(b).sum() - sums_by_document(a).sum()
    for parts in (found.by_document, found.by_class):
        assert sum(part["nats"] for part in parts) == pytest.approx(total, rel=1e-9)
        assert sum(part["bytes"] for part in parts) == found.n_bytes == 3600
    for part, nats_a, nats_b in zip(found.by_document, sums_by_document(a), sums_by_document(b), strict=True):
        assert part["bits_per_byte_a"] == pytest.approx(nats_a / LN2 / 1200, rel=1e-9)
        assert part["difference"] == pytest.approx((nats_b - nats_a) / LN2 / 1200, rel=1e-9)


def test_the_difference_on_a_document_has_an_interval() -> None:
    """From at most 40 stretches of cells of 64 bytes: 1,200 bytes are too few, and of 6,000 each has three cells."""
    a, b = random_runs(3, n_tokens=1000)
    rows = compare(a, b).by_document
    for row, of_a, of_b in zip(rows, a.tables or [], b.tables or [], strict=True):
        y, x = np.zeros((2, 32))  # 94 cells
        for table, sign in ((of_a, -1), (of_b, 1)):
            at = table["byte_start"].to_numpy() // 6 * 6 // 192  # the cell of the first byte of each segment
            y += sign * np.bincount(at, table["nll"].to_numpy(), 32) / LN2
            x += np.bincount(at, table["byte_end"].to_numpy() - table["byte_start"].to_numpy(), 32) / 2
        assert (row["low"], row["high"]) == pytest.approx(paired(y, 0 * y, x)[0][1:3], rel=1e-6)
        assert row["low"] < row["difference"] < row["high"]
    assert [(row["low"], row["high"]) for row in compare(*random_runs(3)).by_document] == [(None, None)] * 3
    one = compare(*random_runs(1, n_tokens=1000))
    (row,) = one.to_json()["by_document"]
    assert one.changes["bits_per_byte"].difference[1:] == (row["low"], row["high"])


def test_the_largest_losses_and_gains_stand_in_their_text() -> None:
    text = "the café 猫 sat on the mat, and the dog on the cat, and that was all that happened there".encode()
    a = [Tok(text[i : i + 1], 2.0) for i in range(len(text))]
    nats = {5: 9.0, 7: 4.0, 30: 0.5, 40: 1.5}
    b = [token._replace(nll=nats.get(i, 2.0)) for i, token in enumerate(a)]
    found = compare(made([Tok(b"other"), Tok(b"!")], a), made([Tok(b"other"), Tok(b"!")], b))
    assert [(part["byte_start"], part["difference"]) for part in found.losses] == [(5, 7.0), (7, 2.0)]
    assert [(part["byte_start"], part["difference"]) for part in found.gains] == [(30, -1.5), (40, -0.5)]
    first = found.losses[0]
    assert (first["document"], first["before"], first["text"], first["nats_b"]) == ("d1", "the c", "a", 9.0)
    assert text.decode().startswith("the ca" + first["after"])
    assert found.losses[1]["text"] == "\\xc3"  # half of é
    assert found.gains[1]["before"].startswith("the")
    long = compare(
        made(tokens_of("猫".encode() * 60, 1.0, size=3)), made(tokens_of("猫".encode() * 60, 1.0, 2.0, size=3))
    )
    assert long.losses[19]["before"] == "猫" * 27  # 80 bytes cut one in two, and it is shown whole
    assert long.losses[19]["after"] == "猫" * 10


def test_equal_tokens_have_figures_of_tokens() -> None:
    """Right: 3 of 4 in A, 2 in B; one is broken, none mended; three times the same choice, once wrong in both."""
    chosen = [(1, 1), (2, 2), (3, 9), (8, 8)]
    a, b = (
        made([Tok(b"ab", 1.0 + side, id=i, argmax=chosen[i - 1][side]) for i in (1, 2, 3, 4)] * 50) for side in (0, 1)
    )
    found = compare(a, b)
    assert found.agreement == pytest.approx((0.75, 0.25, 0.25, 0.0))
    right = found.changes["top1_accuracy"]
    assert (right.a, right.b, right.difference.value) == (0.75, 0.5, -0.25)
    assert right.relative.value == pytest.approx(-1 / 3)
    per_token, perplexity = found.changes["nats_per_token"], found.changes["token_perplexity"]
    assert (per_token.a, per_token.b, per_token.relative.value) == (1, 2, 1)
    assert (perplexity.a, perplexity.b) == (math.e, math.exp(2))
    assert perplexity.relative.value == pytest.approx(math.e - 1)
    assert perplexity.difference == (pytest.approx(math.exp(2) - math.e), None, None)
    assert perplexity.p == per_token.p


def test_the_interval_of_a_perplexity_is_that_of_nats_seen_through_e() -> None:
    generator = np.random.default_rng(1)
    a, b = (made(*[tokens_of(b"abcdef" * 9, *generator.gamma(2, 1, 54)) for _ in range(31)]) for _ in range(2))
    changes = compare(a, b).changes
    nats, ratio = changes["nats_per_token"].difference, changes["token_perplexity"].relative
    assert ratio == pytest.approx([math.expm1(x) for x in nats if x is not None])


def test_tokens_that_are_not_scored_in_both_count_for_neither() -> None:
    a = [Tok(b"a", None), *tokens_of(b"bcdefgh", 2.0)]
    b = [*tokens_of(b"abcdef", 3.0), Tok(b"gh", None)]
    found = compare(made(a), made(b))
    assert (found.n_bytes, found.tokens_a, found.tokens_b) == (5, 5, 5)
    assert found.changes["bits_per_byte"].a == pytest.approx(2 / LN2)
    assert "3 of 8 bytes are left out: they are not scored in both" in found.notes


def test_an_impossible_token_leaves_no_difference_and_is_said() -> None:
    a = tokens_of(b"abcdefgh" * 20, 2.0)
    b = [token._replace(nll=math.inf) if i in (3, 9) else token for i, token in enumerate(a)]
    for found, values in (
        (compare(made(a), made(b)), (2 / LN2, None)),
        (compare(made(b), made(a)), (None, 2 / LN2)),
        (compare(made(b), made(b)), (None, None)),
    ):
        change = found.changes["bits_per_byte"]
        assert (change.a, change.b) == pytest.approx(values)
        assert change.difference == change.relative == (None, None, None)
        assert change.p is None
        assert any("probability 0" in note for note in found.notes)
        json.dumps(found.to_json(), allow_nan=False)
    worse = compare(made(a), made(b))
    assert (worse.impossible_a, worse.impossible_b) == (0, 2)
    assert [part["byte_start"] for part in worse.losses] == [3, 9]
    assert worse.losses[0]["nats_b"] is worse.losses[0]["difference"] is None
    assert worse.changes["top1_accuracy"].difference.value == 0


def test_everything_is_json() -> None:
    values = json.loads(json.dumps(compare(*random_runs(3)).to_json(), allow_nan=False))
    assert values["a"]["model"] == "hand"
    assert list(values["bits_per_byte"]) == ["a", "b", "difference", "relative", "p"]
    assert list(values["bits_per_byte"]["difference"]) == ["value", "low", "high"]
    assert values["nats_per_token"] is values["agreement"] is values["divergence"] is None
    assert values["interval"]["kind"] == "blocks"
    assert values["bytes"] == 3600


def test_what_cannot_be_compared_is_refused() -> None:
    one, two = tokens_of(b"one", 1.0), tokens_of(b"two", 1.0)
    cases = [
        (made(one), made(two), "document 1 is not the same text in both: it is d0 in A and d0 in B"),
        (made(one, two), made(one), "B has no document 2, d1"),
        (made(one), made(one, two), "A has no document 2, d1"),
        (made(one), made(one, protocol="blocks"), "A was scored under sliding and B under blocks"),
        (
            made(one),
            made(one, drift="it lower-cases"),
            "bytes of B cannot be compared: text is lost in 3 bytes of 1 document: it lower-cases in d0",
        ),
        (made(one, drift="it lower-cases"), made(one), "bytes of A cannot be compared"),
        (made([Tok(b"one", None)]), made(one), "nothing in common"),
        (made([Tok(b"on"), Tok(b"e", None)]), made([Tok(b"o", None), Tok(b"ne")]), "nothing in common"),
    ]
    for a, b, message in cases:
        with pytest.raises(ValueError, match=message):
            compare(a, b)
    with pytest.raises(ValueError, match="were not kept"):
        compare(replace(made(one), tables=None), made(one))


def test_a_document_without_tokens_is_no_hindrance() -> None:
    """Whatever is said of its bytes: there are none to compare."""
    side = Side.of_run(made(tokens_of(b"one", 1.0)))
    (fact,) = side.facts
    empty = fact._replace(drift="it drops what it has no token for", n_tokens=0)
    comparable(side._replace(facts=[empty]), side._replace(facts=[empty]))
    with pytest.raises(ValueError, match="bytes of A cannot be compared"):
        comparable(side._replace(facts=[empty._replace(n_tokens=1)]), side)


def test_other_windows_and_dtypes_are_allowed_and_said() -> None:
    a, b = made(tokens_of(b"abc" * 99, 1.0)), made(tokens_of(b"abc" * 99, 2.0), window=16, stride=4, dtype="bfloat16")
    found: Comparison = compare(a, b)
    assert "the window is 8 in A and 16 in B" in found.notes
    assert "the dtype is float32 in A and bfloat16 in B" in found.notes
    assert not any("stride" in note for note in found.notes)
