"""Packing that keeps documents whole: nothing lost, every prompt in view of its completion, rows well filled."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cynosure
from cynosure.cli.training import kept_whole
from cynosure.text import Document
from cynosure.training.folder import RunFolder
from cynosure.training.packing import IGNORED, PackedRow
from cynosure.training.settings import TrainSettings
from cynosure.training.whole import TooLong, WholePacked, best_fit_decreasing, row_for
from tests.training.runs import documents, timeless
from tests.training.test_packing import BOS, END, EOS, tokenised
from tests.training.test_resume import assert_same
from tests.training.test_run import data_of

sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 30)), min_size=1, max_size=12)
MEAN = 414  # tokens of an example


def examples(found: list[tuple[int, int]], shared: bool) -> Any:
    """Of these lengths of completions and prompts."""
    return tokenised([sum(pair) for pair in found], shared, [pair[1] for pair in found])


def segments(row: PackedRow) -> list[PackedRow]:
    """The parts of a row that attention keeps apart."""
    starts = np.flatnonzero(row.position_ids == 0)[1:]
    return [PackedRow(*parts) for parts in zip(*(np.split(values, starts) for values in row), strict=True)]


def epoch(packed: WholePacked, number: int = 0) -> list[PackedRow]:
    return [packed[i] for i in range(packed.first_row(number), packed.first_row(number + 1))]


def numbered(values: np.ndarray) -> list[int]:
    """Those tokens that belong to a document alone."""
    return values[values >= 1000].tolist()


@given(found=sizes, shared=st.booleans(), seed=st.integers(0, 9))
def test_what_fits_is_in_one_piece_once_an_epoch(found: list[tuple[int, int]], shared: bool, seed: int) -> None:
    texts = examples(found, shared)
    packed = WholePacked(texts, 72, seed)
    for number in range(3):
        seen, predicted, pieces = Counter[int](), Counter[int](), []
        for row in epoch(packed, number):
            assert [len(values) for values in row] == [72] * 3
            seen.update(numbered(row.input_ids))
            predicted.update(row.targets[row.targets != IGNORED].tolist())
            pieces += [numbered(part.input_ids) for part in segments(row)]
        assert seen == Counter(numbered(texts.ids))
        assert predicted == Counter(texts.ids[texts.predicted].tolist())
        own = [numbered(part) for part in np.split(texts.ids, texts.edges[1:-1])]
        assert sorted(piece for piece in pieces if piece) == own


@given(found=sizes, shared=st.booleans(), row_tokens=st.integers(8, 40))
def test_every_target_sees_its_prompt(found: list[tuple[int, int]], shared: bool, row_tokens: int) -> None:
    """The nearest part of it, as much as has room beside the completion; a completion too long loses its end."""
    texts = examples(found, shared)
    packed = WholePacked(texts, row_tokens, 1)
    counts = Counter[str]()
    for number, (n_completion, n_prompt) in enumerate(found):
        n_ending = 0 if shared else 1
        if 1 + n_prompt + n_completion + n_ending <= row_tokens:
            continue
        if not n_prompt:
            counts["split"] += 1
        else:
            counts["cut_prompts" if 2 + n_completion + n_ending <= row_tokens else "cut_completions"] += 1
            body = [1000 * (number + 1) + i for i in range(n_prompt + n_completion)]
            part = next(s for row in epoch(packed) for s in segments(row) if set(body) & set(s.input_ids.tolist()))
            kept = numbered(part.input_ids)
            assert part.input_ids[0] == (END if shared else BOS)
            assert kept == body[body.index(kept[0]) :][: len(kept)]
            n_before = body.index(body[n_prompt]) - body.index(kept[0])
            if 2 + n_completion + n_ending <= row_tokens:
                assert n_before == row_tokens - 1 - n_completion - n_ending
                assert kept[-1] == body[-1]
            else:
                assert n_before == min(n_prompt, row_tokens // 2)
            targets = numbered(part.targets)
            assert targets[0] == body[n_prompt]
            assert targets == body[n_prompt:][: len(targets)]
            assert len(part.input_ids) == row_tokens
    told = packed.packing._asdict()
    assert {name: told[name] for name in ("cut_prompts", "cut_completions", "split", "dropped")} == {
        name: counts[name] for name in ("cut_prompts", "cut_completions", "split", "dropped")
    }


@given(found=sizes, shared=st.booleans(), row_tokens=st.integers(8, 40))
def test_a_split_document_is_still_predicted_whole(found: list[tuple[int, int]], shared: bool, row_tokens: int) -> None:
    texts = tokenised([pair[0] for pair in found], shared)
    rows = epoch(WholePacked(texts, row_tokens, 2))
    seen = Counter(token for row in rows for token in numbered(row.input_ids))
    predicted = Counter(token for row in rows for token in row.targets.tolist() if token != IGNORED)
    assert seen == Counter(numbered(texts.ids))
    assert predicted == Counter(texts.ids[texts.predicted].tolist())


@given(found=sizes, shared=st.booleans())
def test_padding_is_apart_and_counted(found: list[tuple[int, int]], shared: bool) -> None:
    packed = WholePacked(examples(found, shared), 72, 0)
    n_padding = 0
    for number in range(packed.first_row(2)):
        parts = segments(packed[number])
        known = sum(len(part.input_ids) for part in parts if numbered(part.input_ids))
        for part in parts:
            if not numbered(part.input_ids):
                assert (part.targets == IGNORED).all()
            assert EOS not in part.input_ids[:-1].tolist()
        n_padding += 72 - known
        assert packed.n_padding(number, number + 1) == 72 - known
    assert packed.n_padding(0, packed.first_row(2)) == n_padding
    n_tokens = packed.packing.epoch_tokens
    assert packed.packing.fill == pytest.approx(1 - n_padding / 2 / n_tokens)


def test_the_order_is_the_seeds_and_another_each_epoch() -> None:
    texts = examples([(5, 2)] * 20 + [(9, 4)] * 20, True)
    orders = [
        [row.input_ids.tolist() for row in epoch(WholePacked(texts, 32, seed), number)]
        for seed in (0, 1)
        for number in (0, 1)
    ]
    packed = WholePacked(texts, 32, 0)
    backwards = [packed[i].input_ids.tolist() for i in reversed(range(packed.first_row(2)))]
    assert backwards[::-1] == orders[0] + orders[1]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert [packed.epoch_of(i) for i in (0, packed.n_rows - 1, packed.n_rows)] == [0, 0, 1]


def test_what_is_longer_than_a_row_is_left_out_or_refused() -> None:
    texts = examples([(5, 2), (20, 30), (30, 0), (9, 3)], False)
    packed = WholePacked(texts, 20, 0, "drop")
    assert packed.packing.dropped == 2
    seen = {token // 1000 for row in epoch(packed) for token in numbered(row.input_ids)}
    assert seen == {1, 4}
    with pytest.raises(TooLong, match=r"it has 52 tokens, more than a row of 20 \(2 of 4 documents do\)") as refusal:
        WholePacked(texts, 20, 0, "error")
    assert refusal.value.number == 1
    with pytest.raises(ValueError, match="every document is longer than a row of 8 tokens and was dropped"):
        WholePacked(texts, 8, 0, "drop")


@given(st.integers(1, 40).flatmap(lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), min_size=1))))
def test_it_is_best_fit_decreasing(found: tuple[int, list[int]]) -> None:
    """Against the definition, an item at a time."""
    room, lengths = found
    left: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in range(len(left)) if left[row] >= length]
        if not fitting:
            left.append(room)
            fitting = [len(left) - 1]
        left[min(fitting, key=lambda row: left[row])] -= length
    row_of, n_rows = best_fit_decreasing(np.array(lengths), room)
    filled = np.bincount(row_of, np.sort(lengths)[::-1], n_rows)
    assert sorted((room - filled).astype(int).tolist()) == sorted(left)


@given(sigma=st.floats(0.4, 1.2), row_tokens=st.sampled_from([1024, 2048]), seed=st.integers(0, 99))
def test_rows_of_ordinary_examples_are_95_percent_full(sigma: float, row_tokens: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).lognormal(np.log(MEAN) - sigma**2 / 2, sigma, 5000).astype(int) + 1
    lengths = np.minimum(lengths, row_tokens)
    _, n_rows = best_fit_decreasing(lengths, row_tokens)
    assert lengths.sum() / (n_rows * row_tokens) >= 0.95


def test_what_is_told_of_those_too_long() -> None:
    told = {"fill": 0.9912, "cut_prompts": 12, "cut_completions": 1, "split": 0, "dropped": 0}
    assert kept_whole(told) == (
        "documents are kept whole: rows are 99.1% full, the rest is padding; longer than a row, and so changed "
        "(increase --row-tokens to avoid this): 12 cut at the beginning of the prompt, "
        "1 cut at the end of the completion"
    )
    assert kept_whole(told | {"cut_prompts": 0, "cut_completions": 0}).endswith("the rest is padding")


def settings_of(tiny_folder: Path, **options: Any) -> TrainSettings:
    return TrainSettings(**{
        "init": str(tiny_folder), "tokens": 1536, "row_tokens": 32, "batch_tokens": 128, "validate_every": 384,
        "validate_tokens": 150, "dtype": "float32", "device": "cpu", "learning_rate": 1e-2, "spike": 100.0, **options,
    })  # fmt: skip


def pairs() -> list[Document]:
    """Prompts with short completions, some of them longer than a row."""
    return [Document(f"{d.name}", d.text[: 20 + i], 10 + i) for i, d in enumerate(documents()) if len(d.text) > 60]


class Interrupting(cynosure.Watcher):
    def step(self, figures: dict[str, Any]) -> None:
        if figures["step"] == 8:
            raise KeyboardInterrupt


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_a_run_on_prompts(tiny_folder: Path, tmp_path: Path) -> None:
    """Its plan and its lines count padding; stopped, it goes on bit for bit."""
    settings = settings_of(tiny_folder, tokens=None)
    cynosure.train(pairs(), tmp_path / "whole", settings)
    folder = RunFolder(tmp_path / "whole")
    kept, plan = folder.manifest["packing"], folder.manifest["plan"]
    packed = WholePacked(data_of(folder.path).tokenised(), 32, 0)
    assert kept == packed.packing._asdict()
    assert kept["cut_prompts"] > 0
    assert plan["steps"] == -(-packed.n_rows * 32 // 128)
    for step, line in enumerate(timeless(folder.path)):
        rows = [packed[i] for i in range(4 * step, 4 * step + 4)]
        assert line["predicted_tokens"] == sum(int((row.targets != IGNORED).sum()) for row in rows)
        assert line["padding_tokens"] == packed.n_padding(4 * step, 4 * step + 4)
        assert line["tokens"] == 128 * (step + 1)
    with pytest.raises(KeyboardInterrupt):
        cynosure.train(pairs(), tmp_path / "run", settings, watcher=Interrupting())
    cynosure.train([], tmp_path / "run", resume=True)
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_how_a_run_packs(tiny_folder: Path, tmp_path: Path) -> None:
    plain = [Document(document.name, document.text) for document in documents()]
    once = {"tokens": 128, "validate_every": 128}
    for name, texts, options, strategy in (
        ("plain", plain, {}, "stream"),
        ("kept", plain, {"keep_documents_whole": True}, "whole"),
        ("prompts", pairs(), {"overlong": "drop"}, "whole"),
    ):
        cynosure.train(texts, tmp_path / name, settings_of(tiny_folder, **once, **options))
        kept = RunFolder(tmp_path / name).manifest["packing"]
        assert kept["strategy"] == strategy
        assert (kept["split"] > 0) == (name == "kept")
        assert (kept["dropped"] > 0) == (name == "prompts")
    with pytest.raises(ValueError, match=r"overlong 'drop' is for documents that are kept whole, and these are not"):
        cynosure.train(plain, tmp_path / "refused", settings_of(tiny_folder, overlong="drop"))
    with pytest.raises(ValueError, match=r"text \d+: it has \d+ tokens, more than a row of 32 .* or `overlong='drop'`"):
        cynosure.train(pairs(), tmp_path / "refused", settings_of(tiny_folder, overlong="error"))
    assert not (tmp_path / "refused" / "train.json").exists()


@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_data_of_an_earlier_version(tiny_folder: Path, tmp_path: Path) -> None:
    """Which kept the first token predicted of each document, and no packing: its rows are still a stream."""
    cynosure.train(pairs(), tmp_path / "run", settings_of(tiny_folder, tokens=128, validate_every=128))
    now = data_of(tmp_path / "run").tokenised()
    first = [int(np.flatnonzero(part[1:])[0]) + 1 for part in np.split(now.predicted, now.edges[1:-1])]
    np.savez(tmp_path / "run/data/documents.npz", edges=now.edges, first_predicted=np.array(first),
             shared=now.separators.shared)  # fmt: skip
    (tmp_path / "run/data/predicted.bool").unlink()
    then = data_of(tmp_path / "run").tokenised()
    assert (then.predicted == now.predicted).all()
    assert (then.edges == now.edges).all()


def test_rows_follow_documents_that_are_kept_whole() -> None:
    """99% fit a row, which is 95% full; where none does, the fewest are cut, and of few documents rows stay short."""
    generator = np.random.default_rng(0)
    sizes = [512, 1024, 2048]
    for lengths, row in (
        (generator.integers(50, 200, 500), 512),
        (generator.integers(300, 512, 500), 2048),  # with one in a row of 512, and two or three in 1,024
        (generator.integers(200, 700, 500), 1024),
        (np.append(generator.integers(20, 100, 500), [5000] * 4), 512),  # fewer than 1%
        (np.full(500, 3000), 512),
        (np.append(np.full(90, 100), np.full(10, 1500)), 2048),
        (np.array([40, 30]), 512),
        (np.array([0]), 512),
    ):
        assert row_for(lengths, sizes) == row
    assert row_for(generator.integers(200, 700, 500), [512]) == 512


@pytest.mark.parametrize(
    ("options", "positions", "processes", "rows"),
    [
        ({}, 8192, 1, [512, 1024, 2048]), ({}, 1024, 1, [512, 1024]), ({}, 256, 1, [256]), ({}, None, 4, [512, 1024]),
        ({"row_tokens": 700}, 8192, 1, [700]), ({"batch_tokens": 1536}, 8192, 1, [512]),
        ({"init": None, "preset": "tiny"}, None, 1, None),
    ],
)  # fmt: skip
def test_rows_suit_model_and_batch(options: Any, positions: int | None, processes: int, rows: list[int] | None) -> None:
    settings = TrainSettings(**({"init": "smollm2"} | options))
    assert settings.row_sizes(positions, processes) == (rows or [settings.size.row_tokens])
