"""What the commands read as TEXT, and what they say of it."""

import json
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from cynosure.text.words import one_text
from tests.cli.test_bad_input import Run, refused
from tests.cli.test_cli import run as run
from tests.training.test_cli import OPTIONS

STORIES = "<|endoftext|>".join(f"\nOnce there was a cat {n}. It sat on the mat {n * n}.\n" for n in range(40))


def give_stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(text.encode())))


def test_predict_takes_words_files_and_stdin(
    run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    file.write_text("the cat")
    wanted = json.loads(run("predict", tiny_folder, "the cat", "--format", "json").out)
    assert json.loads(run("predict", tiny_folder, file, "--format", "json").out) == wanted
    give_stdin(monkeypatch, "the cat")
    assert json.loads(run("predict", tiny_folder, "-", "--format", "json").out) == wanted
    give_stdin(monkeypatch, "the cat\n")
    done = run("predict", tiny_folder, "-", "--format", "json")
    assert json.loads(done.out)["text"] == "the cat\n"
    assert "ends with a line feed" in done.err
    refused(run("predict", tiny_folder, tmp_path / "none.txt"), "there is no file", "none.txt", "pipe them in: echo")
    refused(run("predict", tiny_folder, "and/or"), "there is no file 'and/or'")


def test_check_takes_them_too(run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the cat sat on the mat " * 20
    (tmp_path / "a.txt").write_text(text)
    give_stdin(monkeypatch, text)
    found = [
        json.loads(run("check", tiny_folder, given, "--format", "json").out)["checks"]
        for given in (text, tmp_path / "a.txt", "-", tmp_path)
    ]
    assert found[0] == found[1] == found[2] == found[3]
    refused(run("check", tiny_folder, "none.txt"), "there is no file 'none.txt'")
    refused(run("check", tiny_folder, "/dev/null"), "/dev/null is a device, not a text")


def test_words_that_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cynosure")
    monkeypatch.chdir(tmp_path)
    Path("Paris").write_text("is a city")
    Path("data").mkdir()
    Path("data/a.txt").write_text("a")
    assert one_text("Paris") == "is a city"
    assert "Paris is read, because it is a file here" in caplog.text
    assert one_text("data") == "a"
    assert one_text("data/*.txt") == "a"
    assert "only the first document of data is read, data/a.txt" in caplog.text
    for words in ("London", "What is this?", "a [b] *", "", " ", "3.14", "x" * 300, "see a.txt for more"):
        assert one_text(words) == words


def test_score_says_how_to_score_words(run: Run, tiny_folder: Path) -> None:
    refused(run("score", tiny_folder, "some words"), 'echo "some words" | cynosure score MODEL -')
    refused(run("score", tiny_folder, ""), "a name is empty")


def test_stories_are_split_and_the_hint_says_how(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "stories.txt"
    file.write_text(STORIES.replace("<|endoftext|>", "<s>"))
    done = run("score", tiny_folder, file, "--format", "json")
    assert "if '<s>' separates documents in a text file, read them with --split-at '<s>'" in done.err
    done = run("score", tiny_folder, file, "--split-at", "<s>", "--format", "json")
    found = json.loads(done.out)
    assert (found["documents"], found["special_strings"]) == (40, 0)
    assert found["bytes"] + sum(part["bytes"] for part in found["excluded"]) == len(STORIES) - 39 * len("<|endoftext|>")
    assert "--split-at" not in done.err
    table = tmp_path / "a.jsonl"
    table.write_text('{"text": "a"}')
    refused(run("score", tiny_folder, table, "--split-at", "<s>"), "--split-at splits text files, and the rows of")


def test_rows_left_out_are_told(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "the cat sat"}\n{"text": null}\n{"text": "the mat"}\n')
    refused(run("score", tiny_folder, file), "a.jsonl:2: column 'text' is null, expected a string", "--bad-rows skip")
    done = run("score", tiny_folder, file, "--bad-rows", "skip", "--format", "json")
    assert "note: 1 row is left out" in done.err
    assert any("1 row is left out" in note for note in json.loads(done.out)["notes"])
    done = run("compare", tiny_folder, tiny_folder, file, "--bad-rows", "skip", "--format", "json")
    assert any("1 row is left out" in note for note in json.loads(done.out)["notes"])


def test_a_note_is_said_once_however_often_texts_are_read(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffthe cat sat on the mat".encode())
    done = run("score", tiny_folder, file, "--protocol", "all")
    assert done.err.count("byte order mark") == 1


@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_train_splits_and_leaves_rows_out(run: Run, tmp_path: Path) -> None:
    stories, rows, out = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "run"
    stories.write_text(STORIES)
    rows.write_text('{"text": "the cat sat on the mat"}\n{"text": null}\n')
    given = ["train", stories, rows, "--out", out, "--split-at", "<|endoftext|>", "--bad-rows", "skip"]
    done = run(*given, *OPTIONS)
    assert done.status == 0, done.err
    assert "1 row is left out" in done.err
    manifest = json.loads((out / "train.json").read_text())
    assert manifest["facts"]["train_documents"] + manifest["facts"]["valid_documents"] == 41
    assert any("1 row is left out" in note for note in manifest["facts"]["notes"])
    assert (manifest["corpus"]["split_at"], manifest["corpus"]["bad_rows"]) == ("<|endoftext|>", "skip")
    again = run("train", stories, rows, "--out", out, "--resume", "--bad-rows", "skip", "--quiet")
    refused(again, "was started on other texts: its corpus.split_at is <|endoftext|>, and now it is nothing")
    valid = run("train", stories, "--valid", stories, "--out", tmp_path / "other", *OPTIONS)
    refused(valid, "every document is in --valid")
