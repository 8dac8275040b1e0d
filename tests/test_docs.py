"""Documents are correct: their Python blocks run, print the output shown, and their commands exist."""

import contextlib
import doctest
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from scripts.words import GENERATED, READMES, glossary, prose_of, wrong_words

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$(?=(?P<rest>.*))", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"\s*```text\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LOOSELY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(markdown: str) -> list[tuple[int, str, str | None]]:
    """Return (line, code, output) of each Python block; output is the `text` block right after it, or None."""
    blocks = []
    for match in FENCE.finditer(markdown):
        if match["language"] == "python":
            output = OUTPUT.match(match["rest"])
            line = markdown.count("\n", 0, match.start("body"))
            blocks.append((line, match["body"], output and output["body"]))
    return blocks


def run(markdown: str, name: str) -> None:
    """Run the Python blocks of a document in order, in one namespace."""
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


def test_readme_is_short_and_shows_code_its_output_two_pictures_and_one_table() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 120
    assert len(text.split()) <= 900
    assert any(output for _, _, output in examples(text))
    assert len(re.findall(r"^\|[-|]+\|$", text, re.MULTILINE)) == 1
    assert [(ROOT / path).is_file() for path in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)] == [True] * 2


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


def commands(markdown: str) -> list[list[str]]:
    """Return the arguments of each `cynosure` command in the shell blocks of a document."""
    blocks = [match["body"] for match in FENCE.finditer(markdown) if match["language"] in ("sh", "console")]
    calls = re.findall(r"^(?:\$ )?(?:.*\| |torchrun .* -m )?cynosure (.*)$", "".join(blocks), re.MULTILINE)
    return [shlex.split(call, comments=True) for call in calls]


def parse(arguments: list[str]) -> None:
    """Parse arguments with the command line, without running anything."""
    from cynosure.cli.app import app

    group = typer.main.get_command(app)
    name, command, rest = group.resolve_command(group.make_context("cynosure", arguments.copy()), arguments)
    command.make_context(name, rest)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_shown_commands_have_these_options(document: Path) -> None:
    for arguments in commands(document.read_text()):
        if not any(argument.startswith("[") for argument in arguments):  # a usage line, not a command
            parse(arguments)


def test_every_command_ends_with_examples_of_it() -> None:
    from cynosure.cli.app import app

    for name, command in typer.main.get_command(app).commands.items():
        lines = command.epilog.partition("Examples:\n")[2].splitlines()
        shown = commands("```sh\n" + "\n".join(line.strip() for line in lines) + "\n```\n")
        assert 1 <= len(shown) <= 3, name
        assert {arguments[0] for arguments in shown} == {name}
        for arguments in shown:
            parse(arguments)


def test_a_wrong_command_is_found() -> None:
    [right, wrong] = commands("```sh\necho a | cynosure score m -\n$ cynosure score m t --no-such-option\n```\n")
    parse(right)
    with pytest.raises(Exception, match="No such option"):
        parse(wrong)


@pytest.mark.exhaustive
def test_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cynosure.cli.app import app

    (tmp_path / "notes").mkdir()
    for n in range(12):
        text = f"Note {n}: the quick brown fox jumps over the lazy dog, and then it rests for {n} hours.\n" * 3
        (tmp_path / "notes" / f"{n}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    shown = commands((ROOT / "README.md").read_text())
    assert [arguments[0] for arguments in shown] == ["train", "score", "score", "compare", "report"]
    for arguments in shown:
        assert not typer.main.get_command(app).main([*arguments, "--quiet"], "cynosure", standalone_mode=False)


def verbs(command: Any, path: str = "cynosure") -> dict[str, str]:
    """Return the help text of every command below `command`, by the words that run it."""
    below = getattr(command, "commands", None)
    if below is None:
        return {path: command.help or ""}
    return {verb: text for name in below for verb, text in verbs(below[name], f"{path} {name}").items()}


def undocumented(verbs: dict[str, str], documents: str) -> list[str]:
    """Return the commands that lack a help text or that the documents do not mention."""
    return [path for path, text in verbs.items() if not text.strip() or path not in documents]


def test_every_command_is_documented() -> None:
    from cynosure.cli.app import app

    command = typer.main.get_command(app)
    assert {"cynosure predict", "cynosure score", "cynosure check", "cynosure info"} <= set(verbs(command))
    assert undocumented(verbs(command), "".join(path.read_text() for path in DOCUMENTS)) == []


def test_every_benchmark_is_documented() -> None:
    from benchmarks.commands import app

    benchmarks = verbs(typer.main.get_command(app), "python -m benchmarks")
    assert {"python -m benchmarks loss", "python -m benchmarks score", "python -m benchmarks train"} <= set(benchmarks)
    assert undocumented(benchmarks, (ROOT / "benchmarks" / "README.md").read_text()) == []


def test_an_undocumented_command_is_found() -> None:
    app = typer.Typer()
    app.command("silent")(lambda: None)
    app.command("secret", help="Told nowhere.")(lambda: None)
    app.command("told", help="Told.")(lambda: None)
    assert undocumented(verbs(typer.main.get_command(app)), "`cynosure silent`, `cynosure told`") == [
        "cynosure silent",
        "cynosure secret",
    ]


def test_the_documents_use_the_words_of_the_glossary() -> None:
    words = glossary()
    assert len(words) > 30
    for path in {*DOCUMENTS, *READMES} - GENERATED:
        assert list(wrong_words(path.read_text(), words)) == [], path


def test_a_word_that_is_out_is_found() -> None:
    text = "A `body` in code.\n\n```sh\nbody\n```\n\nThe matrix\nproducts of the Body, [here](body.md).\n"
    places = [(line, word) for line, word, _ in wrong_words(text, glossary())]
    assert places == [(7, "matrix products"), (8, "Body")]


def test_a_word_that_is_out_is_found_in_a_source() -> None:
    source = '''
def body(figures):  # the body
    """Return the `body` of a race.

    >>> figures = "two figures"
    """
    raise ValueError(f"{figures} of the"
        " figure", "figures")
'''
    places = [(line, word) for line, word, _ in wrong_words(prose_of(source), glossary())]
    assert places == [(2, "body"), (3, "race"), (8, "figure")]
