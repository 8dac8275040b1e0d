"""Write docs/reference/cli.md from the command line's own help. `make docs` runs this; a test compares the two."""

import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from cynosure.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
TITLE = "Command line"
EXAMPLES = re.compile(r"\x08\nExamples:\n((?:  .*\n)+)")


def page() -> str:
    """Return the commands, arguments and options as Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="cynosure", title=TITLE)
    return EXAMPLES.sub(shown, text).rstrip() + "\n"


def shown(examples: re.Match[str]) -> str:
    """Return the examples at the end of a help text as a console block."""
    return "**Examples**:\n\n```console\n" + examples[1].replace("  ", "$ ", 1).replace("\n  ", "\n$ ") + "```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
