"""The reference covers every command, option and public name; the chart shows the published numbers."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

import cynosure
from cynosure.cli.app import app
from scripts import chart, cli_reference

ROOT = Path(__file__).parents[1]
API = "".join(path.read_text() for path in sorted((ROOT / "docs" / "reference" / "api").glob("*.md")))
PUBLIC = {name: getattr(room, name) for room in (cynosure, cynosure.losses) for name in room.__all__}
PAGES = "".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])


def options() -> Iterator[tuple[str, str]]:
    """Yield (command, option) of the command line."""
    for name, command in typer.main.get_command(app).commands.items():
        for parameter in getattr(command, "params", ()):
            for option in parameter.opts:
                if option.startswith("--"):
                    yield name, option


def test_every_option_is_in_the_command_line_reference() -> None:
    page = cli_reference.PAGE.read_text()
    sections = dict(re.findall(r"^## `cynosure (\w+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert [(name, option) for name, option in options() if f"`{option}" not in sections[name]] == []


@pytest.mark.skipif(
    f"typer=={version('typer')}\n" not in (ROOT / "constraints.txt").read_text(),
    reason="another version of typer writes the page in another form",
)
def test_the_command_line_reference_is_what_its_script_writes() -> None:
    assert cli_reference.PAGE.read_text() == cli_reference.page(), "run: python scripts/cli_reference.py"


def undocumented(api: str) -> list[str]:
    """Return public names, and names that documents import, which no page of the API reference shows."""
    shown = {path.rpartition(".")[2] for path in re.findall(r"^::: (cynosure\.[\w.]+)$", api, re.MULTILINE)}
    imported = re.findall(r"^from cynosure\.\w+ import ([\w, ]+)$", PAGES, re.MULTILINE)
    public = {
        *cynosure.__all__,
        *cynosure.losses.__all__,
        *(name.strip() for names in imported for name in names.split(",")),
    }
    return sorted(name for name in public - shown if not name.startswith("_"))


def test_every_public_name_is_in_the_api_reference() -> None:
    assert undocumented(API) == []


def test_a_missing_name_is_found() -> None:
    assert "score" in undocumented(API.replace("::: cynosure.score\n", ""))


def test_the_picture_shows_the_published_numbers() -> None:
    picture = chart.PICTURE.read_text()
    shown = {f"{row['seconds']:,.1f}" for row in chart.values()} | {f"{row['MiB']:,.0f}" for row in chart.values()}
    assert len(shown) == 8
    assert shown <= set(re.findall(r">([\d,.]+)</text>", picture))


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("cynosure sc", ["score"]),
        ("cynosure score --pro", ["--protocol"]),
        ("cynosure train --learn", []),
        ("cynosure train --schedule ", ["cosine", "wsd"]),
    ],
)
def test_the_shell_completes_commands_options_and_values(words: str, completed: list[str]) -> None:
    asked = {"_CYNOSURE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [sys.executable, "-m", "cynosure"]
    answer = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == completed
    assert answer.stderr == ""


def without_arguments(names: dict[str, object]) -> list[str]:
    """Return the parameters of functions that the `Args` of their docstrings do not describe."""
    missing = []
    for name, function in names.items():
        if inspect.isfunction(function):
            section = (inspect.getdoc(function) or "").partition("\nArgs:\n")[2].partition("\n\n")[0]
            described = set(re.findall(r"^    \*{0,2}(\w+): ", section, re.MULTILINE))
            missing += [
                f"{name}: {parameter}" for parameter in inspect.signature(function).parameters.keys() - described
            ]
    return missing


def test_docstrings_of_public_functions_describe_every_argument() -> None:
    assert without_arguments(PUBLIC) == []


def test_docstrings_of_public_functions_run_outside_of_the_repository() -> None:
    assert [name for name, value in PUBLIC.items() if "tests." in (value.__doc__ or "")] == []


def test_an_argument_without_a_description_is_found() -> None:
    def undescribed(a: int, b: int) -> None:
        """Add.

        Args:
            a: one.
        """

    assert without_arguments({"undescribed": undescribed}) == ["undescribed: b"]
