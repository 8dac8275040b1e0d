"""Whatever stands in names and texts from outside, a terminal is only ever given printable characters."""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.live import Live
from rich.text import Text

from cynosure.cli import app, common, screen
from cynosure.cli.compare_report import plain
from cynosure.cli.training import Lines, Picture
from cynosure.measure.results.scores import Setting
from cynosure.measure.scoring.score import setting
from cynosure.system.escapes import visible
from tests.cli.test_bad_input import Run, refused
from tests.cli.test_cli import Done
from tests.cli.test_cli import run as run

# Clears the screen, sets the window's title, C1's own introducer, reorders and hides, forges a line; no slash, so that
# files can have it for a name.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp\u2066\u200b\x7f[bold]\r\nFORGED line"
STYLE = re.compile(r"\x1b\[[0-9;]*m")  # colours, which are ours


def assert_safe(text: str) -> None:
    for line in text.split("\n"):
        assert line.isprintable(), ascii(line)
        assert not line.lstrip(" .").startswith("FORGED"), text


def safe(done: Done) -> Done:
    assert_safe(done.out)
    assert_safe(done.err)
    return done


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Path:
    """A folder of a hostile name with a model, a text and a table in it, all of hostile names."""
    place = tmp_path / HOSTILE
    shutil.copytree(tiny_folder, place / f"model {HOSTILE}")
    (place / f"text {HOSTILE}.txt").write_text(f"the cat {HOSTILE} sat on the mat.\n" * 8, newline="")
    rows = [json.dumps({HOSTILE: f"the cat {n}. " * 20, "other": 1}) for n in range(4)]
    (place / f"table {HOSTILE}.jsonl").write_text("\n".join(rows) + "\n")
    return place


def only(place: Path, start: str) -> Path:
    return next(path for path in place.iterdir() if path.name.startswith(start))


def test_the_string_is_hostile_and_visible_makes_it_safe() -> None:
    with pytest.raises(AssertionError):
        assert_safe(HOSTILE)
    assert_safe(visible(HOSTILE))
    assert "FORGED line" in visible(HOSTILE)


def test_score_summary_and_compare(run: Run, place: Path) -> None:
    model, text, table = (only(place, start) for start in ("model", "text", "table"))
    for format in ("table", "json"):
        done = safe(run("score", model, text, "--out", place / "a", "--format", format))
        assert done.status == 0, done
        assert "\\x1b[2J" in done.out or "\\u001b[2J" in done.out
    assert json.loads(done.out)["model"] == model.name
    assert safe(run("score", model, table, "--column", HOSTILE, "--out", place / "b")).status == 0
    assert safe(run("score", model, text, "--protocol", "all")).status == 0
    assert safe(run("summary", place / "a")).status == 0
    markdown, junit = place / "out.md", place / "out.xml"
    done = safe(
        run("compare", place / "a", place / "a", "--fail-if", "bits_per_byte > 1%", "--markdown", markdown,
            "--junit", junit)
    )  # fmt: skip
    assert done.status == 0, done
    assert_safe(markdown.read_text())
    assert ElementTree.parse(junit).getroot().find("testsuite") is not None
    assert safe(run("compare", model, model, text)).status == 0


def test_a_file_name_that_is_not_utf_8(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    """As any other name: shown with an escape, and the same in what is kept."""
    text = tmp_path / "caf\udce9\x1b.txt"
    text.write_text("the cat sat on the mat.\n" * 8)
    assert safe(run("score", tiny_folder, text, "--out", tmp_path / "run")).status == 0
    done = safe(run("summary", tmp_path / "run", "--format", "json"))
    assert json.loads(done.out)["by_document"][0]["document"] == str(text)
    assert safe(run("score", tiny_folder, text, "--out", tmp_path / "run")).status == 0  # the same, and there already


def test_a_run_folder_from_a_stranger(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its manifest says is shown as safely as a text."""

    def forged(*arguments: Any) -> Setting:
        odd = {name: f"{name} {HOSTILE}<img src=x>" for name in ("model", "dtype", "device")}
        return setting(*arguments)._replace(**odd, notes=(f"note {HOSTILE}",))

    monkeypatch.setattr("cynosure.measure.scoring.score.setting", forged)
    assert run("score", only(place, "model"), only(place, "text"), "--out", place / "a").status == 0
    for command in (("summary", place / "a"), ("compare", place / "a", place / "a", "--markdown", place / "out.md")):
        done = safe(run(*command))
        assert done.status == 0, done
        assert "<img" in done.out
    assert_safe((place / "out.md").read_text())
    assert not re.search(r"(?<!\\)<img", re.sub(r"`[^`]*`", "", (place / "out.md").read_text()))


def test_predict_check_and_info(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = only(place, "model")
    text = "\x1b[2J\x9b\u202e\r\nFORGED"
    assert safe(run("predict", model, text, "--truth", text)).status == 0
    assert safe(run("predict", model, text, "--truth", text, "--format", "json")).status == 0
    assert safe(run("check", model, text)).status in (0, 1)
    monkeypatch.setenv("CYNOSURE_CACHE", str(place))
    monkeypatch.setenv("CYNOSURE_GEMM", "torch")
    assert safe(run("info")).status == 0


def test_errors(run: Run, place: Path) -> None:
    model, text, table = (only(place, start) for start in ("model", "text", "table"))
    odd = place / "odd"
    shutil.copytree(model, odd)
    config = json.loads((odd / "config.json").read_text()) | {"model_type": HOSTILE}
    (odd / "config.json").write_text(json.dumps(config))
    latin = place / f"latin {HOSTILE}.txt"
    latin.write_bytes(b"ab\xe9")
    broken = place / f"broken {HOSTILE}.jsonl"
    broken.write_text("{")
    commands: list[tuple[object, ...]] = [
        ("score", odd, text),
        ("score", place / "none", text),
        ("score", HOSTILE, text),
        ("score", model, place / "none"),
        ("score", model, HOSTILE),
        ("score", model, latin),
        ("score", model, broken),
        ("score", model, table),
        ("score", model, table, "--column", f"none {HOSTILE}"),
        ("score", model, text, "--protocol", HOSTILE),
        ("score", model, text, "--dtype", HOSTILE),
        ("score", model, text, "--device", HOSTILE),
        ("score", model, text, "--tokenizer", place / "none"),
        ("score", model, text, "--out", place),
        ("score", model, text, f"--{HOSTILE}"),
        ("summary", place / "none"),
        ("compare", place / "none", place),
        ("compare", place, place, "--fail-if", HOSTILE),
        ("compare", place, place, "--fail-if", "bits_per_byte > 1%", "--junit", place / "none" / "x"),
        ("predict", model, "a", "--revision", HOSTILE),
        ("check", place / "none"),
        ("train", place / "none", "--out", place / "run"),
        ("train", text, "--out", place),
        ("train", "--resume", "--out", place / "none"),
        (HOSTILE,),
    ]
    for command in commands:
        refused(safe(run(*command)))


def test_a_traceback(run: Run, place: Path) -> None:
    done = safe(run("score", only(place, "model"), place / HOSTILE, "--debug"))
    assert done.status == 2
    assert "Traceback" in done.err


def test_notes_of_the_library_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    common.show_notes(quiet=False)
    logging.getLogger("cynosure").info("%s is damaged", HOSTILE)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = app.show_warning
        warnings.warn(HOSTILE, UserWarning, stacklevel=1)
    common.note([HOSTILE, HOSTILE], quiet=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert_safe("\n".join(lines))


@pytest.mark.parametrize("terminal", [False, True])
def test_whatever_is_printed(terminal: bool) -> None:
    file = io.StringIO()
    console = screen.Console(file=file, width=300, force_terminal=terminal)
    line = HOSTILE.replace("\r\n", "")
    table = screen.headed_table("name", line)
    table.add_row(HOSTILE, Text(line, style="bold"))
    console.print(HOSTILE, style="red")
    console.print(table)
    console.print(Text(line))
    printed = file.getvalue()
    assert ("\x1b[" in printed) == terminal
    assert "[bold]" in printed
    assert_safe(STYLE.sub("", printed))


def test_the_display_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().note(HOSTILE)
    assert_safe(capsys.readouterr().err)
    file = io.StringIO()
    with Live(console=screen.Console(file=file, width=120, force_terminal=True), auto_refresh=False) as live:
        Picture(live).note(HOSTILE)
    printed = re.sub(r"\x1b\[(\?25[lh]|[0-9]*[AK]|[0-9;]*m)|\r", "", file.getvalue())
    assert_safe(printed)


@pytest.mark.exhaustive
def test_training_on_hostile_names(place: Path) -> None:
    choices = {"preset": "tiny", "vocab": 300, "row-tokens": 16, "batch-tokens": 64, "tokens": 256, "dtype": "float32"}
    options = [part for name, value in choices.items() for part in (f"--{name}", str(value))]
    texts = place / "texts"
    texts.mkdir()
    for number in range(12):
        (texts / f"{number} {HOSTILE}.txt").write_text(f"{number} the cat {HOSTILE} sat. " * 20, newline="")
    command = [sys.executable, "-m", "cynosure", "train", str(texts), "--out", str(place / "run"), *options]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    safe(Done(0, done.stdout.decode(), done.stderr.decode()))
    assert b"\\x1b[2J" in done.stdout


def test_json_is_the_same_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {HOSTILE: [HOSTILE, "naïve 猫 🎉", 1.5, None], "x": "\U000e0001"}
    common.print_json(value)
    printed = capsys.readouterr().out
    assert_safe(printed)
    assert json.loads(printed) == value
    assert "naïve 猫 🎉" in printed


def test_markdown_of_a_sentence_is_no_markup() -> None:
    assert plain("<img src=x onerror=y> `a` [b](c) _d_ | e") == r"\<img src=x onerror=y\> \`a\` \[b\](c) \_d\_ | e"
