"""The exit status means what it says: 1 is kept for what has failed a check, and never what went wrong unforeseen."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cynosure.training import Diverged
from tests.cli.test_bad_input import Run, refused
from tests.cli.test_cli import run as run

ENTRY = """
import sys
from cynosure.cli import app, entry
def run():
    {statement}
app.main = run
entry.main()
"""


class Panic(BaseException):
    """As PyO3's PanicException, by which compiled libraries say that they have a bug: no Exception."""


def raising(error: BaseException) -> Callable[..., Any]:
    def raise_it(*_: object, **__: object) -> None:
        raise error

    return raise_it


VERBS = {
    "predict": ("cynosure.measure.predict", ("x", "text")),
    "score": ("cynosure.measure.score", ("x", __file__)),
    "summary": ("cynosure.measure.open_run", ("x",)),
    "compare": ("cynosure.measure.compare", ("x", "y")),
    "report": ("cynosure.reporting.report", ("x",)),
    "train": ("cynosure.training.train", (__file__, "--out", "x")),
    "check": ("cynosure.auditing.check", ("x",)),
    "info": ("cynosure.cli.info.gather", ()),
}
UNFORESEEN = [
    (Panic("index out of bounds"), "Panic: index out of bounds (--debug shows the traceback)"),
    (RuntimeError("a\nb\x1b[2J"), r"RuntimeError: a b\x1b[2J (--debug shows the traceback)"),
    (RecursionError("too deep"), "RecursionError: too deep (--debug shows the traceback)"),
    (MemoryError(), "not enough memory: an allocation failed. Close other programs, or give less at once"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "not enough memory: DefaultCPUAllocator"),
    (SystemExit(1), "a library ended the process: 1"),
    (SystemExit("usage: other"), "a library ended the process: usage: other"),
    (OSError("odd"), "odd"),
    (EOFError(), "EOFError:  (--debug shows the traceback)"),
]


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_unforeseen_is_status_2_in_one_line(
    verb: str, run: Run, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    where, arguments = VERBS[verb]
    arguments = tuple(
        str(tiny_folder) if part == "x" and verb in ("predict", "score", "check") else part for part in arguments
    )
    for error, message in UNFORESEEN:
        monkeypatch.setattr(where, raising(error))
        refused(run(verb, *arguments), message)


def test_a_failed_check_is_status_1(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cynosure.training.train", raising(Diverged("training diverged")))
    done = run("train", __file__, "--out", tmp_path / "run", "--no-report")
    assert (done.status, done.err) == (1, "cynosure: training diverged\n")


def entry(statement: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The entry of the script, with a command line that does this."""
    code = ENTRY.format(statement=statement)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    ("statement", "status", "message"),
    [
        ("import no_such_module", 2, "cynosure: ModuleNotFoundError: No module named 'no_such_module': reinstall it"),
        ("from os import no_such_name", 2, "cynosure: ImportError: cannot import name 'no_such_name'"),
        ("import typer_; raise ModuleNotFoundError(name='typer')", 2, "cynosure: ModuleNotFoundError"),
        ("raise KeyboardInterrupt", 130, "cynosure: interrupted"),
        ("import signal; signal.raise_signal(signal.SIGTERM)", 143, ""),
    ],
)
def test_before_the_command_line_is_there(statement: str, status: int, message: str) -> None:
    done = entry(statement)
    assert done.returncode == status
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == bool(message)


PRINTS = {
    "print": "print('x' * 1_000_000); sys.stdout.flush()",
    "a table": "console = screen.stdout(); [console.print('x' * 1_000_000) for _ in range(3)]",
    "a note": "common.note(['x' * 1_000_000], quiet=False)",
    "progress": "[screen.stderr().print('x' * 1_000_000) for _ in range(3)]",
}


# Each takes a process of its own: `make test` has one that writes to stdout and one that writes to stderr.
READERS = [("a table", True), ("progress", False)]
MORE_READERS = [("print", False), ("a note", True)]
OTHER_READERS = [("a table", False), ("progress", True), ("print", True), ("a note", False)]


@pytest.mark.parametrize(
    ("prints", "failed"),
    [
        *READERS,
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in MORE_READERS),
        *(pytest.param(*case, marks=[pytest.mark.exhaustive, pytest.mark.each_variant]) for case in OTHER_READERS),
    ],
)
def test_a_reader_who_has_seen_enough_is_no_failure(prints: str, failed: bool) -> None:
    """As after `2>&1 | head -1`, whichever call meets the broken pipe."""
    code = (
        "import sys; from cynosure.cli import app, common, screen\n"
        "def show(*_, **__):\n"
        f"    common.settings.failed = {failed}\n"
        f"    {PRINTS[prints]}\n"
        "app.info.show = show\n"
        "sys.argv = ['cynosure', 'info']\n"
        "app.main()"
    )
    assert to_nobody(code) == failed


@pytest.mark.parametrize("arguments", [["odd"], [], ["score", "--debug"]])
def test_an_error_that_nobody_hears_is_status_2(arguments: list[str]) -> None:
    assert (
        to_nobody(f"import sys; from cynosure.cli import app; sys.argv = ['cynosure', *{arguments}]; app.main()") == 2
    )


def to_nobody(code: str) -> int:
    """The exit status of a program whose output goes into a pipe that is closed at the other end."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=writing, check=False)
    os.close(writing)
    return done.returncode


def test_a_killed_process_has_the_signals_status(tmp_path: Path) -> None:
    done = entry("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL


def test_nobody_but_a_text_reads_standard_input() -> None:
    """A library's question finds no answer in it, nor does another process; the text is whole all the same."""
    text = "y\nthe text\n"
    questions = (
        "import os, subprocess; from cynosure.text import find_sources, read_documents\n"
        "    for ask in (input, lambda: sys.stdin.read() or 1 / 0, lambda: next(sys.stdin)):\n"
        "        try: print('answered', ask())\n"
        "        except (EOFError, ZeroDivisionError, StopIteration): pass\n"
        "    print([os.read(0, 9), subprocess.run(['cat'], capture_output=True).stdout])\n"
        "    print([document.text for document in read_documents(find_sources(['-']))])"
    )
    done = entry(questions, input=text)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[b'', b'']", str([text])]


def test_standard_input_may_be_closed() -> None:
    done = subprocess.run(
        f"{sys.executable} -m cynosure --version <&-", shell=True, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
