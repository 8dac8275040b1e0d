"""Statistics of planted tokens: sums are exact in any order, groups are what they say."""

import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cynosure.measure import Scores, Statistics
from cynosure.measure.results.scores import Setting
from cynosure.measure.statistics import stretches
from cynosure.measure.statistics.bootstrap import interval
from cynosure.measure.statistics.breakdown import by_class, by_document, by_frequency, by_position
from cynosure.measure.statistics.calibration import TEMPERATURES
from cynosure.measure.statistics.classes import CLASSES, byte_class, describe
from cynosure.measure.statistics.groups import Accumulator, Grouped
from cynosure.measure.storage.rows import DocumentFacts, Shard, schema

SETTING = Setting("m", "sliding", 8, 4, "float32", "cpu", ())
WORDS = [b" the", b"cat", b",", b" 7", "猫".encode(), b"\n", b"\xf0\x9f"]


def shard(nll: list[float | None], document: int = 0, drift: str | None = None, **columns: Any) -> Shard:
    """A document of planted losses, None where a token is not scored; tokens are those of WORDS in turn."""
    n = len(nll)
    scored = [x is not None for x in nll]
    pieces = columns.pop("pieces", [WORDS[i % len(WORDS)] for i in range(n)])
    stops = np.cumsum([len(piece) for piece in pieces])
    starts = stops - [len(piece) for piece in pieces]
    values: dict[str, Any] = {
        "document": [document] * n,
        "index": list(range(n)),
        "token_id": [i % len(WORDS) for i in range(n)],
        "token_bytes": pieces,
        "byte_start": starts if drift is None else [None] * n,
        "byte_end": stops if drift is None else [None] * n,
        "nll": nll,
        "entropy": [1.5 if s else None for s in scored],
        "rank": [1 if s else None for s in scored],
        "confidence": [0.5 if s else None for s in scored],
        "argmax": [0 if s else None for s in scored],
        "brier": [0.5 if s else None for s in scored],
        "nll_at_temperature": [[x or 0.0] * len(TEMPERATURES) for x in nll],
        "context": list(range(1, n + 1)),
        "window": [0] * n,
        "excluded": [None if s else "why" for s in scored],
    } | columns
    types = schema(len(TEMPERATURES), 0)
    table = pa.table([pa.array(values[name], types.field(name).type) for name in types.names], schema=types)
    n_bytes = int(stops[-1])
    return Shard(table, (DocumentFacts(document, f"d{document}", 1, n_bytes, n_bytes, n, n, 0, "0" * 64, drift),))


def statistics(*shards: Shard) -> Statistics:
    found = Statistics()
    for part in shards:
        found.update(part)
    return found


def scores(*shards: Shard) -> Scores:
    return Scores(SETTING, statistics(*shards))


def test_merging_in_any_order_gives_the_same_bits() -> None:
    chance = np.random.default_rng(0)
    lengths = [400 if i == 7 else 80 for i in range(40)]
    parts = [shard(chance.gamma(1.5, 2, n).tolist(), document=i) for i, n in enumerate(lengths)]
    forward, backward = Statistics(), Statistics()
    for part in parts:
        forward.merge(statistics(part))
    for part in reversed(parts):
        backward.merge(statistics(part))
    a, b = (Scores(SETTING, found).to_json() for found in (forward, backward))
    assert a == b == scores(*parts).to_json()
    assert (a["documents"], a["tokens"], a["interval"]["kind"]) == (40, 3520, "documents")
    assert [row["document"] for row in a["by_document"] if row["low"] is not None] == ["d7"]
    total = math.fsum(float(np.float32(x)) for part in parts for x in part.table["nll"].to_pylist())
    assert a["nats"] == pytest.approx(total, rel=1e-13)


def test_sums_of_groups_carry_and_stay_exact() -> None:
    accumulator = Accumulator()
    table = np.zeros((12, 3), dtype=np.int64)
    table[0], table[7] = 1, (1 << 32) - 1  # the lower half of the nats is full
    for _ in range(5):
        accumulator.add(Grouped.of(np.array([2, 1, 2]), table))
    found = accumulator.sums()
    assert found.keys.tolist() == [1, 2]
    assert found.counts("tokens").tolist() == [5, 10]
    assert found.amount("nats").tolist() == [5 * ((1 << 32) - 1) / 2**40, 10 * ((1 << 32) - 1) / 2**40]


def test_unscored_tokens_count_for_nothing_but_hide_the_words() -> None:
    found = scores(shard([None, 0.5, 2.0]))
    assert (found.tokens, found.nats, found.n_bytes, found.n_words) == (2, 2.5, 4, None)
    assert scores(shard([0.25, 0.5, 2.0])).n_words == 3
    assert scores(shard([0.25, 0.5]), shard([None, 1.0], document=1)).n_words is None
    (left_out,) = found.to_json()["excluded"]
    assert left_out == {"document": "d0", "byte_start": 0, "byte_end": 4, "reason": "why"}


def test_neighbouring_exclusions_are_one() -> None:
    found = statistics(shard([None, None, 1.0, None, 1.0]))
    assert [(part.byte_start, part.byte_end) for part in found.left_out()] == [(0, 7), (8, 10)]


def test_unknown_bytes_stay_unknown() -> None:
    found = scores(shard([1.0, 2.0]), shard([1.0], document=1, drift="it changes the text"))
    values = found.to_json()
    assert values["bytes"] is values["chars"] is None
    assert values["bits_per_byte"] == {"value": None, "low": None, "high": None}
    assert values["words"] == 3
    assert [row["bytes"] for row in values["by_document"]] == [7, None]
    lost = (
        "metrics per byte and character are withheld: text is lost in 4 bytes of 1 document: it changes the text in d1"
    )
    assert lost in found.notes


def test_an_impossible_token_makes_the_loss_infinite_and_json_null() -> None:
    found = scores(shard([1.0, math.inf, 1.0, 2.0]))
    assert found.nats == found.figures["token_perplexity"].value == math.inf
    values = found.to_json()
    assert values["nats"] is values["token_perplexity"]["value"] is values["nats_per_token"]["low"] is None
    assert values["worst_tokens"][0]["nats"] is None
    assert values["worst_tokens"][0]["text"] == "cat"
    assert scores(shard([2000.0])).figures["token_perplexity"].value == math.inf


def test_the_byte_account_is_checked() -> None:
    part = shard([1.0, 2.0, 3.0])
    statistics(part).check_account()
    broken = Shard(part.table.slice(1), part.facts)
    with pytest.raises(RuntimeError, match="d0: 4 bytes are accounted for, and it has 8"):
        statistics(broken).check_account()


def test_classes() -> None:
    rows = {row["class"]: row for row in by_class(statistics(shard([1.0, 2, 3, 4, 5, 6, 7])))}
    nats = {"letters": 3.0, "punctuation": 3.0, "digits": 4.0, "CJK": 5.0, "whitespace": 6.0, "other": 7.0}
    assert {name: row["nats"] for name, row in rows.items()} == nats
    assert rows["letters"]["share_of_nats"] == 3 / 28
    assert math.fsum(row["share_of_nats"] for row in rows.values()) == pytest.approx(1)
    others = {" ひ": "CJK", "한": "CJK", "é": "letters", "٣": "digits", "€": "other", "": "other"}
    for piece, name in others.items():
        assert CLASSES[byte_class(piece.encode())] == name


def test_many_pieces_are_described_as_each_alone() -> None:
    chance = random.Random(0)
    alphabet = [*b" \n\x1c\x85\xa0az19,.$\x00", *"é猫😀\u3000\xa0".encode()]
    pieces = [bytes(chance.choices(alphabet, k=chance.randint(0, 5))) for _ in range(5000)]
    pieces += [text.encode() for text in ("猫", " ひ", "\u3000", "\xa0a", "€", " ", "")]
    kinds, chars = describe(pa.array(pieces).slice(1))
    assert kinds.tolist() == [byte_class(piece) for piece in pieces[1:]]
    assert chars.tolist() == [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces[1:]]
    assert [found.tolist() for found in describe(pa.array([], pa.binary()))] == [[], []]


def test_positions_are_half_octaves_of_context() -> None:
    rows = by_position(statistics(shard([1.0] * 8)))
    assert [(row["context_from"], row["context_to"], row["tokens"]) for row in rows] == [
        (1, 1, 1),
        (2, 2, 1),
        (3, 3, 1),
        (4, 5, 2),
        (6, 7, 2),
        (8, 11, 1),
    ]


def test_frequency_deciles_hold_a_tenth_of_the_tokens_each() -> None:
    ids = [i for i in range(100) for _ in range(1 + (i < 50))]  # fifty kinds seen twice, fifty once
    rows = by_frequency(statistics(shard([1.0] * len(ids), token_id=ids)))
    assert [row["decile"] for row in rows] == list(range(1, 11))
    assert {row["tokens"] for row in rows} <= {14, 15, 16}
    assert (rows[0]["seen_from"], rows[-1]["seen_to"], rows[-1]["kinds"]) == (2, 1, 15)


def test_documents_and_the_costliest_of_them() -> None:
    parts = [shard([float(i)] * 3, document=i) for i in range(3)]
    rows = by_document(statistics(*parts))
    assert [(row["document"], row["nats_per_token"]) for row in rows] == [("d0", 0.0), ("d1", 1.0), ("d2", 2.0)]


def test_the_distribution_of_the_loss() -> None:
    nll = [0.0, 0.2, 0.25, 3.3, 19.9, 20.0, 70.0]
    parts = [shard(nll[:3]), shard(nll[3:], document=1)]
    rows = scores(*parts).to_json()["by_loss"]
    assert len(rows) == 81
    assert [(row["nats_from"], row["nats_to"]) for row in rows[:2]] == [(0.0, 0.25), (0.25, 0.5)]
    assert [row["nats_from"] for row in rows[-2:]] == [19.75, 20.0]
    assert [row["nats_to"] for row in rows[-2:]] == [20.0, None]
    some = {row["nats_from"]: (row["tokens"], row["nats"]) for row in rows if row["tokens"]}
    expected = {0.0: (2, 0.2), 0.25: (1, 0.25), 3.25: (1, 3.3), 19.75: (1, 19.9), 20.0: (2, 90.0)}
    assert some == {key: (n, pytest.approx(nats)) for key, (n, nats) in expected.items()}
    assert rows[-1]["share_of_tokens"] == 2 / 7
    assert rows[-1]["share_of_nats"] == pytest.approx(90 / sum(nll))
    one, other = (statistics(part) for part in parts)
    other.merge(one)
    assert other.losses.rows() == rows
    impossible = scores(shard([1.0, math.inf, 21.0])).to_json()["by_loss"]
    assert (impossible[-1]["tokens"], impossible[-1]["nats"]) == (2, None)
    assert impossible[4]["share_of_nats"] == pytest.approx(1 / 22)


def test_the_loss_along_the_text() -> None:
    """Parts of equally many tokens, from blocks of 16 of them, or from documents where there are thirty."""
    first, second = shard([*[1.0] * 16, *[3.0] * 16]), shard([*[5.0] * 32, None], document=1)
    assert scores(second, first).along(4) == pytest.approx([1.0, 3.0, 5.0, 5.0])
    assert scores(first, second).along(2) == pytest.approx([2.0, 5.0])
    assert scores(first).along(4) == pytest.approx([1.0, 1.0, 3.0, 3.0])
    many = [shard([float(i), i + 1.0], document=i) for i in range(30)]
    assert scores(*many[::-1]).along(15) == pytest.approx([2 * i + 1 for i in range(15)])
    assert scores(*many).along(60) == pytest.approx([i // 2 + 0.5 for i in range(60)])


def long_document(number: int, n: int = 1000) -> list[float]:
    return np.random.default_rng(number).gamma(1.5, 2, n).tolist()


def test_the_interval_of_a_document() -> None:
    """From 40 stretches of 25 tokens, also where the document is cut within one of them."""
    nll = [long_document(i) for i in range(3)]
    whole = [shard(x, document=i) for i, x in enumerate(nll)]
    short = [shard(long_document(9, 319), document=3), shard(long_document(9, 320), document=4)]
    cut = [Shard(part.table.slice(i, j), part.facts) for part in whole for i, j in ((0, 333), (333, 667))]
    *rows, too_short, enough = by_document(statistics(*whole, *short))
    n_bytes = np.array([len(WORDS[i % len(WORDS)]) for i in range(1000)], dtype=float)
    for row, losses in zip(rows, nll, strict=True):
        y, x = (np.array(values).reshape(40, 25).sum(axis=1) for values in (np.float32(losses) / math.log(2), n_bytes))
        assert (row["low"], row["high"]) == pytest.approx(interval(y, x)[1:3], rel=1e-6)
        assert row["low"] < row["bits_per_byte"] < row["high"]
    assert by_document(statistics(*cut[::-1], *short)) == [*rows, too_short, enough]
    assert too_short["low"] is too_short["high"] is None
    assert enough["low"] < enough["bits_per_byte"] < enough["high"]


def test_the_only_document_has_the_interval_of_the_text() -> None:
    values = scores(shard(long_document(0))).to_json()
    assert values["bits_per_byte"].items() >= {key: values["by_document"][0][key] for key in ("low", "high")}.items()


def test_a_document_without_a_reliable_interval_has_none() -> None:
    costly, impossible = long_document(1), long_document(2)
    costly[500], impossible[500] = 1000.0, math.inf
    rows = by_document(
        statistics(*(shard(x, document=i) for i, x in enumerate([costly, impossible, long_document(3)])))
    )
    assert [row["low"] is None for row in rows] == [row["high"] is None for row in rows] == [True, True, False]
    lossy = by_document(statistics(shard(long_document(1)), shard(long_document(2), document=1, drift="it drops text")))
    assert [row["low"] is None for row in lossy] == [False, True]


def test_only_the_longest_documents_have_stretches_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "KEPT", 3)
    lengths = [400, 500, 330, 700, 400, 340, 600, 350, 320, 400]
    parts = [shard(long_document(i, n), document=i) for i, n in enumerate(lengths)]
    halves = [Shard(part.table.slice(i, j), part.facts) for part in parts for i, j in ((0, 200), (200, None))]
    expected = by_document(statistics(*parts))
    assert [i for i, row in enumerate(expected) if row["low"] is not None] == [1, 3, 6]
    for seed in range(5):
        found = Statistics()
        for part in random.Random(seed).sample(halves, len(halves)):
            found.merge(statistics(part))
            assert len(found.stretches.n_tokens) <= 3
            assert len(np.unique(found.stretches.sums.sums().keys >> 32)) <= 3
        assert by_document(found) == expected


def test_worst_tokens_and_spans_stand_in_their_context() -> None:
    nll = [0.5] * 100
    nll[40], nll[90] = 9.0, 8.0
    values = scores(shard(nll), shard([0.1] * 3, document=1)).to_json()
    first, second = values["worst_tokens"][:2]
    assert (first["document"], first["index"], first["nats"]) == ("d0", 40, 9.0)
    assert first["share_of_nats"] == pytest.approx(9 / (98 * 0.5 + 17 + 0.3))
    assert (second["index"], second["text"]) == (90, r"\xf0\x9f")
    assert second["before"].endswith(" 7猫\n")
    assert second["after"].startswith(" thecat,")
    spans = values["worst_spans"]
    assert [(part["index"], part["tokens"]) for part in spans[:4]] == [(32, 32), (64, 32), (0, 32), (96, 4)]
    assert spans[0]["nats"] == pytest.approx(31 * 0.5 + 9)


def test_of_many_shards_the_costliest_are_kept_and_equal_ones_by_their_place() -> None:
    chance = np.random.default_rng(3)
    losses = [chance.integers(0, 12, 200).astype(float).tolist() for _ in range(12)]  # many are equal
    parts = [shard(nll, document=i) for i, nll in enumerate(losses)]
    places = sorted((-x, i, j) for i, nll in enumerate(losses) for j, x in enumerate(nll))[:50]
    spans = [(-sum(nll[j : j + 32]), i, j) for i, nll in enumerate(losses) for j in range(0, 200, 32)]
    for order in (parts, parts[::-1], parts[6:] + parts[:6]):
        found = statistics(*order)
        assert [(-part.nll_nats, part.document, part.first) for part in found.worst_tokens] == places
        assert [(-part.nll_nats, part.document, part.first) for part in found.worst_spans] == sorted(spans)[:50]


def test_effective_tokens_shrink_where_losses_cling_together() -> None:
    chance = np.random.default_rng(1)
    independent = chance.gamma(1.5, 2, 8000)
    smooth = np.repeat(chance.gamma(1.5, 2, 800), 10)
    free, clinging = (scores(shard(x.tolist())).to_json()["effective_tokens"] for x in (independent, smooth))
    assert 5000 < free < 12000
    assert 500 < clinging < 1300


def test_scores_without_tokens_say_so() -> None:
    with pytest.raises(ValueError, match="the tokens of these scores were not kept"):
        scores(shard([1.0])).to_pandas()
