"""What the documents show is true: their Python runs, and what they say it prints is what it prints."""

import contextlib
import doctest
import io
import re
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$(?=(?P<rest>.*))", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"\s*```text\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(markdown: str) -> list[tuple[int, str, str | None]]:
    """(line, code, output) of each Python block; output is the `text` block right after it, or None."""
    found = []
    for match in FENCE.finditer(markdown):
        if match["language"] == "python":
            output = OUTPUT.match(match["rest"])
            line = markdown.count("\n", 0, match.start("body"))
            found.append((line, match["body"], output and output["body"]))
    return found


def run(markdown: str, name: str) -> None:
    """Run a document's Python blocks one after the other in one namespace, as a reader would."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, code, expected in examples(markdown):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, name, "exec"), namespace)
        same = expected is None or doctest.OutputChecker().check_output(expected, printed.getvalue(), LOOSELY)
        assert same, f"{name}, block at line {line + 1} prints\n{printed.getvalue()}instead of\n{expected}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run(document: Path) -> None:
    run(document.read_text(), str(document))


def test_readme_shows_code_and_its_output() -> None:
    assert any(output for _, _, output in examples((ROOT / "README.md").read_text()))


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("```python\n1 / 0\n```\n", ZeroDivisionError),
        ("```python\nx = 1\n```\ntext\n```python\nassert x == 2\n```\n", AssertionError),
        ("```python\nprint(1.5)\n```\n\n```text\n1.6\n```\n", AssertionError),
        ("```python\nprint(1)\n```\n```text\n1\n2\n```\n", AssertionError),
    ],
)
def test_a_wrong_block_is_found(block: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run(f"# Title\n\n{block}", "planted.md")


def test_blocks_share_a_namespace_and_may_elide() -> None:
    run("```python\nx = 2\n```\n\n```sh\nrm\n```\n```python\nprint(x / 3)\n```\n\n```text\n0.66...\n```\n", "right.md")


def verbs(command: Any, path: str = "cynosure") -> dict[str, str]:
    """The help text of every command below `command`, by what one types to run it."""
    below = getattr(command, "commands", None)
    if below is None:
        return {path: command.help or ""}
    return {verb: text for name in below for verb, text in verbs(below[name], f"{path} {name}").items()}


def undocumented(verbs: dict[str, str], documents: str) -> list[str]:
    """The commands that have no help text or that the documents do not mention."""
    return [path for path, text in verbs.items() if not text.strip() or path not in documents]


def test_every_command_is_documented() -> None:
    from cynosure.cli.app import app

    command = typer.main.get_command(app)
    assert {"cynosure predict", "cynosure score", "cynosure check", "cynosure info"} <= set(verbs(command))
    assert undocumented(verbs(command), "".join(path.read_text() for path in DOCUMENTS)) == []


def test_every_benchmark_is_documented() -> None:
    from benchmarks.commands import app

    found = verbs(typer.main.get_command(app), "python -m benchmarks")
    assert {"python -m benchmarks loss", "python -m benchmarks score", "python -m benchmarks train"} <= set(found)
    assert undocumented(found, (ROOT / "benchmarks" / "README.md").read_text()) == []


def test_an_undocumented_command_is_found() -> None:
    app = typer.Typer()
    app.command("silent")(lambda: None)
    app.command("secret", help="Told nowhere.")(lambda: None)
    app.command("told", help="Told.")(lambda: None)
    assert undocumented(verbs(typer.main.get_command(app)), "`cynosure silent`, `cynosure told`") == [
        "cynosure silent",
        "cynosure secret",
    ]
