"""`cynosure train`: what it prints, and what it says of input that makes no training."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cynosure.cli.training import Lines, shown_training
from cynosure.training import Watcher
from cynosure.training.folder import RunFolder
from tests.cli.test_bad_input import Run, files_of, refused
from tests.cli.test_cli import run as run
from tests.tiny import byte_tokenizer
from tests.training.runs import N_STEPS, documents, timeless

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own

CHOICES = {
    "preset": "tiny", "vocab": 300, "row-tokens": 16, "batch-tokens": 128, "tokens": "1.5k", "validate-every": 384,
    "validate-tokens": 150, "dtype": "float32", "device": "cpu",
}  # fmt: skip
OPTIONS = [part for name, value in CHOICES.items() for part in (f"--{name}", str(value))]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for document in documents():
        (folder / f"{document.name}.txt").write_text(document.text)
    return folder


def test_from_a_folder_to_a_model(run: Run, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run("train", texts, "--out", out, *OPTIONS)
    assert done.status == 0, done.err
    assert f"model: {out / 'model'}" in done.out.replace("\n", "")
    assert "held out" in done.err
    assert "4 held out" in done.err
    assert f"step {N_STEPS}/{N_STEPS}" in done.err
    for name in ("loss", "smoothed", "perplexity", "bits/byte", "grad norm", "lr", "tokens/s", "MFU", "ETA"):
        assert name in done.err
    scored = run("score", out / "model", texts, "--format", "json")
    assert json.loads(scored.out)["documents"] == 40


def test_options_reach_the_settings(run: Run, texts: Path, tmp_path: Path) -> None:
    given = {
        "weight_decay": 0.3, "clip": 0.5, "warmup": 0.2, "z_loss": 1e-4, "label_smoothing": 0.1, "schedule": "wsd",
        "spike": 7.0, "hold_out": 0.2, "micro_rows": 2, "overlong": "drop", "seed": 3,
        "grad_tolerance": 0.25,
    }  # fmt: skip
    words = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    options = [*OPTIONS, *words, "--tokens", 384, "--lr", 0.001, "--keep-documents-whole", "--quiet"]
    done = run("train", texts, "--out", tmp_path / "run", *options)
    assert done.status == 0, done.err
    settings = RunFolder(tmp_path / "run").manifest["settings"]
    assert {name: settings[name] for name in given} == given
    assert (settings["tokens"], settings["learning_rate"], settings["keep_documents_whole"]) == (384, 0.001, True)


def test_json_and_quiet(run: Run, texts: Path, tmp_path: Path) -> None:
    done = run("train", texts, "--out", tmp_path / "run", *OPTIONS, "--format", "json", "--quiet")
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["steps"] == N_STEPS
    assert found["scores"]["documents"] == 4
    assert Path(found["model"]).is_dir()


def test_resume_needs_no_texts_and_no_options(run: Run, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("train", texts, "--out", out, *OPTIONS).status == 0
    before = timeless(out)
    checkpoints = RunFolder(out).checkpoints
    last = checkpoints[max(checkpoints)]
    for path in sorted(last.iterdir()):
        path.unlink()
    last.rmdir()  # as if it had been killed before the last
    done = run("train", "--out", out, "--resume")
    assert done.status == 0, done.err
    assert timeless(out) == before
    refused(run("train", texts, "--out", out, "--resume", "--lr", "1"), "started with learning_rate 0.003, not 1.0")


def test_input_that_makes_no_training(run: Run, texts: Path, tmp_path: Path) -> None:
    """One line each, and nothing is left behind."""
    out, empty, short, blank = (tmp_path / name for name in ("run", "empty", "short.txt", "blank.txt"))
    empty.mkdir()
    short.write_text("the cat sat")
    blank.write_text("")
    options = ["--preset", "tiny", "--vocab", "258", "--quiet"]
    refused(run("train", empty, "--out", out, *OPTIONS), "no files in")
    refused(run("train", blank, "--out", out, *OPTIONS), "every document is empty")
    refused(run("train", short, "--out", out, *options, "--hold-out", "0"), "fewer than one row of 256", "--row-tokens")
    refused(
        run("train", short, "--out", out, "--preset", "tiny", "--vocab", "5000", "--quiet"),
        "supports a vocabulary of", "not 5,000: give --vocab", "or more text",
    )  # fmt: skip
    refused(run("train", tmp_path / "none.txt", "--out", out), "no such text")
    refused(run("train", texts), "Missing option '--out'")
    refused(run("train", "--out", out), "no texts to train on")
    refused(run("train", texts, "--out", out, "--tokens", "many"), "not a number of tokens")
    refused(run("train", texts, "--out", out, "--preset", "huge"), "expected one of tiny, small, base")
    refused(run("train", texts, "--out", out, "--init", "no/such", "--quiet"), "no/such")
    refused(run("train", texts, "--valid", texts, "--out", out, *OPTIONS), "every document is in --valid")
    refused(run("train", texts, "--out", out, *OPTIONS, "--report-to", "nobody"), "nobody is not supported")
    refused(run("train", texts, "--out", out, *OPTIONS, "--device", "cuda:1"), "CUDA_VISIBLE_DEVICES")
    assert not out.exists()


def test_a_model_that_cannot_be_trained_here(run: Run, texts: Path, tmp_path: Path, tiny_bloom: Path) -> None:
    """Said before there is a run that could not go on."""
    out = tmp_path / "run"
    refused(run("train", texts, "--out", out, "--init", tiny_bloom, "--quiet"), "documents of a packed row apart")
    assert not out.exists()


def test_texts_in_the_folder_of_the_run(run: Run, texts: Path, tmp_path: Path) -> None:
    """However they are named, they are the user's."""
    out = tmp_path / "project"
    out.mkdir()
    texts.rename(out / "data")
    refused(run("train", out / "data", "--out", out, *OPTIONS), "holds data and no training run")
    assert len(list((out / "data").iterdir())) == len(documents())


def test_a_tokenizers_folder(run: Run, texts: Path, tmp_path: Path) -> None:
    """Without a model beside it; and one whose numbers have gaps."""
    folder, out = tmp_path / "tokenizer", tmp_path / "run"
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    word, number = max(state["model"]["vocab"].items(), key=lambda item: item[1])
    state["model"]["vocab"][word] = number + 40
    (folder / "tokenizer.json").write_text(json.dumps(state))
    options = [part for name, value in CHOICES.items() if name != "vocab" for part in (f"--{name}", str(value))]
    done = run("train", texts, "--out", out, "--tokenizer", folder, *options, "--tokens", "128", "--quiet")
    assert done.status == 0, done.err
    assert RunFolder(out).manifest["facts"]["bytes_known"]


def test_a_folder_that_holds_something_else(run: Run, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    refused(run("train", texts, "--out", out, *OPTIONS), "holds thesis.tex and no training run", "another --out")
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    file = tmp_path / "file"
    file.write_text("mine")
    refused(run("train", texts, "--out", file, *OPTIONS), "is a file")
    run("train", texts, "--out", tmp_path / "first", *OPTIONS)
    before = (tmp_path / "first" / "metrics.jsonl").read_bytes()
    refused(run("train", texts, "--out", tmp_path / "first", *OPTIONS), "holds another run", "--resume")
    assert (tmp_path / "first" / "metrics.jsonl").read_bytes() == before


def test_a_full_disk(run: Run, texts: Path, tmp_path: Path) -> None:
    """Before the first step nothing is left; in the middle of a checkpoint, all that was whole is, and it goes on."""
    out = tmp_path / "run"
    with files_of(2000):
        refused(run("train", texts, "--out", out, *OPTIONS, "--quiet"), "too large; free some space")
    assert not out.exists()
    with files_of(3_000_000):  # room for a model, not for the optimiser
        refused(
            run("train", texts, "--out", out, *OPTIONS, "--quiet"),
            "file too large; free some space",
            "same command again",
        )
    assert not RunFolder(out).checkpoints
    assert not (out / ".partial").exists()
    assert run("train", "--out", out, "--resume").status == 0
    assert len(timeless(out)) == N_STEPS


def test_a_loss_that_diverges(run: Run, texts: Path, tmp_path: Path) -> None:
    """Exit status 1, one line, the batch, and the last good checkpoint."""
    out = tmp_path / "run"
    done = run(
        "train", texts, "--out", out, *OPTIONS, "--lr", "30", "--warmup", "0.5", "--quiet", "--validate-every", "128"
    )
    assert (done.status, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert "diverged at step" in line
    assert "nats above its smoothed" in line
    assert "start from --init" in line
    assert "with a lower --lr" in line
    (batch,) = out.glob("diverged-*.json")
    saved = json.loads(batch.read_text())
    assert len(saved["texts"]) == len(saved["input_ids"]) == 8
    assert max(RunFolder(out).checkpoints) < saved["step"]


def test_what_is_not_a_number_stops_at_once(run: Run, texts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from cynosure.training import loop

    own = loop.Training.compute_loss

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            with torch.no_grad():
                next(iter(self.model.parameters())).fill_(float("nan"))
        return own(self, *args, **kwargs)

    monkeypatch.setattr(loop.Training, "compute_loss", poisoned)
    done = run("train", texts, "--out", tmp_path / "run", *OPTIONS, "--quiet")
    assert done.status == 1
    assert "at step 5: the loss is nan" in done.err
    assert max(RunFolder(tmp_path / "run").checkpoints) == 3


def test_a_wrong_initialisation_is_said(run: Run, texts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from cynosure.training import run as module

    own = module.new_model

    def wide(*args: Any) -> Any:
        model = own(*args)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(40)
        return model

    monkeypatch.setattr(module, "new_model", wide)
    done = run("train", texts, "--out", tmp_path / "run", *OPTIONS, "--lr", "1e-9", "--tokens", "256")
    assert "ln 300 is 5.7038: worse than a uniform guess; the initialization is too wide" in done.err
    monkeypatch.setattr(module, "new_model", own)
    done = run("train", texts, "--out", tmp_path / "right", *OPTIONS, "--tokens", "256")
    assert "uniform guess" not in done.err


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown_training(False) as watcher:
        assert isinstance(watcher, Lines)
    monkeypatch.setenv("RANK", "1")
    with shown_training(False) as watcher:
        assert type(watcher) is Watcher


@pytest.mark.exhaustive
@pytest.mark.each_variant  # test_workers.py has two processes of which one dies, test_sharding.py two with FSDP2
def test_two_processes_follow_ones_curve(run: Run, texts: Path, tmp_path: Path) -> None:
    """Over gloo; rows of unequal numbers of tokens to predict in each."""
    import os

    one, two = tmp_path / "one", tmp_path / "two"
    assert run("train", texts, "--out", one, *OPTIONS, "--quiet").status == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cynosure"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train", str(texts), "--out", str(two), *OPTIONS], env=environment, capture_output=True, text=True,
        check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert RunFolder(two).manifest["plan"]["processes"] == 2
    for ours, theirs in zip(timeless(one), timeless(two), strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=2e-5)
        assert theirs["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], rel=2e-5)
    a, b = (RunFolder(folder).lines("validation.jsonl") for folder in (one, two))
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for x, y in zip(a, b, strict=True):
        assert y["nats_per_token"]["value"] == pytest.approx(x["nats_per_token"]["value"], rel=2e-5)
