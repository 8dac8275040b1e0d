"""Write docs/reference/cli.md from the command line itself. `make docs` runs this; a test compares the two."""

from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from cynosure.cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"
TITLE = "Command line"


def page() -> str:
    """The commands, arguments and options, as Markdown."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="cynosure", title=TITLE)
    return text.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
