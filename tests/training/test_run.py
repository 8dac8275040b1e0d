"""A whole training run: its figures, its objective, its validation and what it leaves behind."""

import itertools
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import cynosure
from cynosure import Watcher
from cynosure.measure import Progress
from cynosure.measure.scoring.scorer import Say
from cynosure.training.data import Data, Facts
from cynosure.training.folder import RunFolder
from cynosure.training.packing import Packed
from cynosure.training.presets import find_preset, new_model
from tests.training.runs import N_STEPS, SETTINGS, documents, run, stopped_at, timeless

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("runs") / "whole")


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().split("\n")[:-1]]


def data_of(folder: Path) -> Data:
    return Data(folder / "data", Facts(**RunFolder(folder).manifest["facts"]))


def test_the_first_loss_is_that_of_plain_torch(whole: Any) -> None:
    """Documents one by one through the model, as if there were no rows: the mean over all tokens of the batch."""
    data = data_of(whole.folder)
    tokenizer, packed = data.tokenizer(), Packed(data.tokenised(), 16, 0)
    model = new_model(find_preset("tiny"), tokenizer, 16, 0)
    nats = []
    for i in range(128 // 16):
        row = packed[i]
        starts = [*np.flatnonzero(row.position_ids == 0), 16]
        for a, b in pairwise(starts):
            logits = model(torch.tensor(row.input_ids[None, a:b])).logits[0]
            nats.append(F.cross_entropy(logits, torch.tensor(row.targets[a:b]), reduction="none"))
    first = timeless(whole.folder)[0]
    assert first["loss"] == pytest.approx(float(torch.cat(nats).mean()), rel=1e-5)
    assert first["loss"] == pytest.approx(math.log(300), abs=0.2)
    assert first["perplexity"] == pytest.approx(math.exp(first["loss"]))


def test_it_learns_and_leaves_everything(whole: Any) -> None:
    metrics = lines(whole.folder, "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, N_STEPS + 1))
    assert [line["tokens"] for line in metrics] == [128 * step for step in range(1, N_STEPS + 1)]
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.5
    assert all(line["tokens_per_second"] > 0 and line["bits_per_byte"] > 0 for line in metrics)
    assert metrics[0]["learning_rate"] == 0.0 < max(line["learning_rate"] for line in metrics)
    assert [line["step"] for line in lines(whole.folder, "validation.jsonl")] == [3, 6, 9, 12]
    assert {line["step"] for line in lines(whole.folder, "samples.jsonl")} == {3, 6, 9, 12}
    names = {path.name for path in whole.folder.iterdir()}
    assert names == {
        "train.json", "data", "metrics.jsonl", "validation.jsonl", "samples.jsonl", "checkpoints", "validation",
        "scores", "model", "curves.svg", "curves.png",
    }  # fmt: skip
    assert "<svg" in (whole.folder / "curves.svg").read_text()[:200]
    assert (whole.folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_validation_is_what_score_says(whole: Any) -> None:
    """Of the best model, under the measuring core's own call, on the documents that were held out."""
    held_out = data_of(whole.folder).valid()
    assert [document.name for document in held_out] == [f"text {i}" for i in (9, 19, 29, 39)]
    again = cynosure.score(str(whole.model_folder), held_out, window=16)
    assert whole.scores.figures == again.figures
    best = min(lines(whole.folder, "validation.jsonl"), key=lambda line: line["nats_per_token"]["value"])
    assert whole.best_step == best["step"]
    assert best["calibration"].keys() == {"ece", "brier", "best_temperature", "recoverable_nats_per_token"}
    assert cynosure.open_run(whole.folder / "scores").tokens == again.tokens
    kept = cynosure.open_run(whole.folder / "validation" / f"step-{whole.best_step:06d}")
    assert kept.figures["nats_per_token"].value == best["nats_per_token"]["value"]


def test_whoever_watches_sees_the_last_scoring(tmp_path: Path) -> None:
    class Counting(Watcher):
        n_bytes, tokens, nats = 0, 0, 0.0

        @contextmanager
        def scoring(self, n_bytes: int) -> Iterator[Say]:
            self.n_bytes = n_bytes
            yield self.add

        def add(self, progress: Progress) -> None:
            self.tokens += progress.tokens
            self.nats += progress.nats

    watcher = Counting()
    scores = run(tmp_path / "run", watcher, tokens=128).scores
    assert scores is not None
    assert watcher.n_bytes == sum(len(document.text) for document in data_of(tmp_path / "run").valid())
    assert watcher.tokens == scores.tokens
    assert watcher.nats / watcher.tokens == pytest.approx(scores.figures["nats_per_token"].value)


def test_bits_per_byte_are_of_the_bytes_predicted(whole: Any) -> None:
    data = data_of(whole.folder)
    packed, tokenizer = Packed(data.tokenised(), 16, 0), data.tokenizer()
    targets = np.concatenate([packed[i].targets for i in range(8)])
    text = tokenizer.decode(targets[targets >= 0], skip_special_tokens=True)
    first = timeless(whole.folder)[0]
    bits = first["loss"] * (targets >= 0).sum() / math.log(2)
    assert first["bits_per_byte"] == pytest.approx(bits / len(text.encode()), rel=1e-6)


@pytest.mark.parametrize("micro_rows", [1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (2, 4))])
def test_micro_batches_are_the_same_batch(whole: Any, tmp_path: Path, micro_rows: int) -> None:
    """Rows hold different numbers of tokens to be predicted: a mean of means would show."""
    run(tmp_path / "split", micro_rows=micro_rows)
    for split, one in zip(timeless(tmp_path / "split"), timeless(whole.folder), strict=True):
        assert split["loss"] == pytest.approx(one["loss"], rel=2e-5)
        assert split["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("options", [{"z_loss": 0.1}, {"label_smoothing": 0.2}])
def test_the_loss_shown_is_the_plain_one(whole: Any, tmp_path: Path, options: dict[str, float]) -> None:
    run(tmp_path / "other", tokens=256, **options)
    first, plain = timeless(tmp_path / "other")[0], timeless(whole.folder)[0]
    assert first["loss"] == pytest.approx(plain["loss"], rel=1e-6)  # the weights are still the same
    extra = first["objective"] - first["loss"]
    knows_nothing = math.log(300)
    expected = 0.1 * knows_nothing**2 if "z_loss" in options else 0.0
    assert extra == pytest.approx(expected, abs=0.1)
    assert abs(extra) > 1e-4
    assert "objective" not in plain


def test_decay_is_of_matrices_alone(tmp_path: Path) -> None:
    """With hardly any learning rate but a huge decay, matrices shrink and gains stay."""
    trained = run(tmp_path / "decayed", tokens=128 * 3, learning_rate=1e-3, weight_decay=100.0, schedule="wsd")
    from transformers import AutoModelForCausalLM

    after = AutoModelForCausalLM.from_pretrained(trained.model_folder)
    before = new_model(find_preset("tiny"), data_of(trained.folder).tokenizer(), 16, 0)
    for (name, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        share = float(b.norm() / a.norm())
        assert (share < 0.95) if a.ndim > 1 else (share == pytest.approx(1, abs=0.01)), name


def test_bfloat16_where_it_is_asked_for(whole: Any, tmp_path: Path) -> None:
    """Weights stay float32; the losses are near those of float32 and not the same."""
    run(tmp_path / "half", dtype="bfloat16", tokens=256)
    half, full = timeless(tmp_path / "half")[0]["loss"], timeless(whole.folder)[0]["loss"]
    assert half != full
    assert half == pytest.approx(full, rel=2e-3)
    state = torch.load(tmp_path / "half" / "checkpoints" / "step-000002" / "optimizer.pt")
    assert {x.dtype for entry in state["state"].values() for x in entry.values()} == {torch.float32}


def test_the_clock_may_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour at every look, as where it is set right; of a run that goes on too."""
    back = itertools.count(2e9, -3600.0)
    monkeypatch.setattr(time, "time", lambda: next(back))
    stopped_at(5, tmp_path / "run")
    run(tmp_path / "run", resume=True)
    steps = lines(tmp_path / "run", "metrics.jsonl")
    seconds = [line["seconds"] for line in steps]
    assert len(steps) == N_STEPS
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < 600
    assert all(line["tokens_per_second"] > 0 for line in steps)


def test_nothing_held_out(tmp_path: Path) -> None:
    trained = run(tmp_path / "all", hold_out=0.0, tokens=256)
    assert trained.scores is None
    assert trained.best_step is None
    assert (trained.model_folder / "model.safetensors").exists()


def test_texts_that_stand_apart(tmp_path: Path) -> None:
    settings = cynosure.TrainSettings(**(SETTINGS | {"hold_out": 0.0, "tokens": 256}))
    given = documents()
    trained = cynosure.train(given, tmp_path / "run", settings, valid=given[:3])
    assert trained.scores is not None
    assert trained.scores.document_names == ["text 0", "text 1", "text 2"]
    assert RunFolder(trained.folder).manifest["facts"]["train_documents"] == 37


def test_the_best_is_kept(tmp_path: Path) -> None:
    """A rate that ruins the model at its end leaves an earlier one as the best, and its checkpoint there."""
    trained = run(tmp_path / "run", learning_rate=0.02, schedule="wsd", warmup=0.8, tokens=128 * 24, spike=100.0)
    losses = {line["step"]: line["nats_per_token"]["value"] for line in lines(trained.folder, "validation.jsonl")}
    assert trained.best_step == min(losses, key=losses.__getitem__)
    kept = set(RunFolder(trained.folder).checkpoints)
    assert trained.best_step in kept
    assert max(losses) in kept
    assert len(kept) <= 3


def test_reports_go_to_trainers_reporters(tmp_path: Path) -> None:
    settings = cynosure.TrainSettings(**(SETTINGS | {"tokens": 256}))
    cynosure.train(documents(), tmp_path / "run", settings, report_to=("tensorboard",))
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
