"""What goes to a file or a pipe: lines of 80 columns or COLUMNS, without padding, and marks that are no colours."""

import os
import re
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from cynosure.cli import common, screen
from tests.cli.test_bad_input import Run
from tests.cli.test_cli import Done
from tests.cli.test_cli import run as run
from tests.tiny import byte_tokenizer, tiny_model
from tests.training.test_cli import OPTIONS
from tests.training.test_cli import texts as texts

WORDS = ["the", "cat", "sat", "on", "a", "mat", "in", "some", "other", "house", "with", "incomprehensibilities"]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(" ".join(WORDS[i * i % 12] for i in range(400)))
    return file


def tidy(done: Done, width: int = 80) -> Done:
    """No line ends in a blank, or is longer than the width unless it is one word and what stands before it."""
    for line in (done.out + done.err).splitlines():
        assert line == line.rstrip(), repr(line)
        assert len(line) <= width or max(map(len, line.split())) > width // 2, (len(line), line)
    return done


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("columns", [None, 110])
def test_scores_and_comparisons(
    run: Run, tiny_folder: Path, tmp_path: Path, text: Path, columns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
    other = tmp_path / "other"
    tiny_model(seed=1).save_pretrained(other)
    byte_tokenizer().save_pretrained(other)
    scored = tidy(run("score", tiny_folder, text, "--out", tmp_path / "a"), columns or 80)
    assert scored.status == 0
    assert re.search(r'^ ?\d+\.\d  "(.+?)" .*\.\.\..*\[\1\]', scored.out, re.MULTILINE), scored.out
    run("score", other, text, "--out", tmp_path / "b", "--quiet")
    for command in (
        ("summary", tmp_path / "a"),
        ("score", tiny_folder, text, "--protocol", "all"),
        ("compare", tmp_path / "a", tmp_path / "b", "--fail-if", "bits_per_byte > 90%"),
        ("compare", tiny_folder, other, text),
    ):
        done = tidy(run(*command), columns or 80)
        assert done.status == 0, done
        if command[0] == "compare":
            assert re.search(r'"(.+?)" +\.\.\..*\[\1\]', done.out), done.out
            assert "+" in done.out


@pytest.mark.usefixtures("narrow")
def test_predict_check_and_info(run: Run, tiny_folder: Path) -> None:
    assert tidy(run("predict", tiny_folder, "the cat\n", "--truth", "sat on the mat")).status == 0
    done = tidy(run("check", tiny_folder, "the cat"))
    assert "d weight, half ignored" in done.out
    assert tidy(run("info")).status == 0


@pytest.mark.usefixtures("narrow")
@pytest.mark.filterwarnings("ignore")
def test_the_end_of_a_training(run: Run, texts: Path, tmp_path: Path) -> None:
    done = tidy(run("train", texts, "--out", tmp_path / "run", *OPTIONS))
    assert done.status == 0
    assert f"model: {tmp_path / 'run' / 'model'}" in done.out.replace("\n", " ")


@pytest.mark.exhaustive
def test_a_process_with_a_pipe(tiny_folder: Path, tmp_path: Path, text: Path) -> None:
    """Not as a test captures, but as a shell does."""
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "cynosure", "score", str(tiny_folder), str(text)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    tidy(Done(done.returncode, done.stdout, done.stderr))
    note = re.search(r"^cynosure: note: .*\n(  \S.*\n)+", done.stderr, re.MULTILINE)
    assert note is not None, done.stderr


def test_errors_stay_on_one_line(run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert len(run("score", tiny_folder, "some words").err.splitlines()) == 1


def test_numbers_are_never_cut_or_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = screen.headed_table("name", "first", "second", "<in words")
    table.add_row("a long name", "123,456,789.0000", "987,654,321.0000", Text("some words"))
    screen.stdout().print(table)
    printed = capsys.readouterr().out
    for part in ("123,456,789.0000", "987,654,321.0000", "some", "words"):
        assert part in printed


def test_tables_of_benchmarks_are_not_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    table = RichTable(box=None, pad_edge=False)
    table.add_column("implementation")
    for _ in range(3):
        table.add_column("seconds", justify="right", no_wrap=True)
    table.add_row("the model's own", "1234.5678", "2345.6789", "3456.7890")
    screen.stdout().print(Group(Text("title"), table))
    printed = capsys.readouterr().out
    assert "1234.5678  2345.6789  3456.7890" in printed
    assert "implementation" in printed


def test_words_are_kept_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    path = "/a/folder/with-a-long/name/" * 3
    screen.stdout().print(f"model: {path} of step 5", style="bold")
    common.say(f"the model is {path} and two or three words more than fit")
    captured = capsys.readouterr()
    assert captured.out == f"model:\n{path}\nof step 5\n"
    assert captured.err == f"the model is\n  {path}\n  and two or three words more\n  than fit\n"


def test_an_encoding_without_the_characters(run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(BytesIO(), "ascii"))
    done = run("predict", tiny_folder, "the cat")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert done.err.endswith("set PYTHONIOENCODING=utf-8\n")


@pytest.mark.parametrize(("columns", "expected"), [("", 80), ("0", 80), ("wide", 80), ("132", 132)])
def test_the_width(columns: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert common.width(sys.stdout) == expected
