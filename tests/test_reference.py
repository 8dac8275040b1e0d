"""The reference covers the code: every command and option, every public name, and the numbers in the README's picture."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import typer

from cynosure.cli.app import app
from scripts import chart, cli_reference

ROOT = Path(__file__).parents[1]
API = "".join(path.read_text() for path in sorted((ROOT / "docs" / "reference" / "api").glob("*.md")))
PACKAGES = (
    "cynosure",
    "cynosure.loss",
    "cynosure.measure",
    "cynosure.models",
    "cynosure.patching",
    "cynosure.training",
)


def options() -> Iterator[tuple[str, str]]:
    """(command, option) of the command line."""
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
    """The public names that no page of the API reference shows, under the name by which they are imported."""
    shown, missing = set(re.findall(r"^::: cynosure\.([\w.]+)$", api, re.MULTILINE)), []
    for package in PACKAGES:
        for name in importlib.import_module(package).__all__:
            path = f"{package}.{name}".removeprefix("cynosure.")
            if not name.startswith("_") and not {name, path} & shown:
                missing.append(path)
    return missing


def test_every_public_name_is_in_the_api_reference() -> None:
    assert undocumented(API) == []


def test_a_missing_name_is_found() -> None:
    assert "score" in undocumented(API.replace("::: cynosure.score\n", ""))


def test_the_picture_shows_the_published_numbers() -> None:
    picture = chart.PICTURE.read_text()
    shown = {f"{row['seconds']:,.1f}" for row in chart.values()} | {f"{row['MiB']:,.0f}" for row in chart.values()}
    assert len(shown) == 8
    assert shown <= set(re.findall(r">([\d,.]+)</text>", picture))


@pytest.mark.skipif(sys.platform == "win32", reason="bash")
def test_completion_completes_commands_and_options() -> None:
    page = (ROOT / "docs" / "how-to" / "complete-in-the-shell.md").read_text()
    [script] = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    program = f'cynosure() {{ "{sys.executable}" -m cynosure "$@"; }}\n{script}\n'

    def complete(words: str, at: int) -> list[str]:
        call = f"COMP_WORDS=({words}); COMP_CWORD={at}; _cynosure; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(
            ["bash", "-c", program + call], capture_output=True, text=True, check=True, env=os.environ
        )
        return done.stdout.split()

    commands = set(typer.main.get_command(app).commands) - {"bench"}
    assert set(complete("cynosure ''", 1)) == commands
    assert complete("cynosure sc", 1) == ["score"]
    assert complete("cynosure score --pro", 2) == ["--protocol"]
