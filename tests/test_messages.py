"""Messages of the library name its arguments; the command line translates them to options."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import cynosure
from cynosure.cli import common
from cynosure.cli.app import app
from cynosure.text import as_documents

SOURCES = Path(cynosure.__file__).parent
ABOVE = ("cli",)  # the command line itself
OPTION = re.compile(r"(?:^|[\s(])--[a-z][a-z-]+")
OTHERS = re.compile(r"--(no-deps|force-reinstall)\b|owner/name--")  # of pip, and names of code on the hub


def strings(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string that is not a docstring."""
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


def options_in(source: str) -> list[tuple[int, str]]:
    return [(line, text) for line, text in strings(source) if OPTION.search(OTHERS.sub("", text))]


def library() -> Iterator[Path]:
    return (path for path in SOURCES.rglob("*.py") if path.relative_to(SOURCES).parts[0] not in ABOVE)


def test_no_message_of_the_library_names_an_option() -> None:
    named = {str(path): options for path in library() if (options := options_in(path.read_text()))}
    assert not named


def test_the_scan_sees_one() -> None:
    assert options_in('"""--doc"""\nraise ValueError(f"{x}: give another --out")\n') == [(2, ": give another --out")]
    assert options_in("x = 'pip install --no-deps y'") == []


def test_every_named_argument_is_an_option() -> None:
    """The command line also translates every argument that a message puts in backticks."""
    command = typer.main.get_command(app)
    parameters = [parameter for verb in command.commands.values() for parameter in verb.params]  # type: ignore[attr-defined]
    flags = {flag for parameter in parameters for flag in parameter.opts}
    for name in common.NAMED:
        assert common.as_options(f"`{name}`") in flags
    named = {
        match[1]
        for path in library()
        for _, text in strings(path.read_text())
        for match in re.finditer(r"`([a-z_]+)(?:=|`)", text)
    }
    assert named <= set(common.NAMED)
    assert len(named) > 15


def test_every_option_of_reading_is_an_argument() -> None:
    reading = inspect.signature(as_documents).parameters
    assert {"column", "errors", "split_at", "bad_rows"} <= set(reading)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("a: b; `bad_rows='skip'` leaves it out", "a: b; --bad-rows skip leaves it out"),
        ('`split_at="<|it\'s|>"` splits', "--split-at '<|it'\"'\"'s|>' splits"),
        ("`trust_remote_code=True`, `vocab_size=300`", "--trust-remote-code, --vocab 300"),
        ("a lower `learning_rate`; `x` and `out`.", "a lower --lr; `x` and --out."),
        ("runs/out=1/resume=True", "runs/out=1/resume=True"),
    ],
)
def test_as_options(message: str, shown: str) -> None:
    assert common.as_options(message) == shown
