"""What the verbs share: their options, where output goes, and how numbers are written."""

import json
import logging
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from cynosure.system.escapes import visible

COLUMNS = 80  # of what is no terminal
# Options as the library's messages name them, after its own arguments: `bad_rows`, `bad_rows='skip'`.
NAMED = (
    "allow_unused_weights", "bad_rows", "batch_tokens", "bos", "chat", "column", "device", "errors", "init",
    "keep_documents_whole", "learning_rate", "lora", "out", "overlong", "resume", "revision", "row_tokens", "special",
    "split_at", "tokenizer", "trust_remote_code", "valid", "vocab_size",
)  # fmt: skip
SHORT = {"learning_rate": "lr", "vocab_size": "vocab"}
ARGUMENT = re.compile(rf"`({'|'.join(NAMED)})(?:=([^`]*))?`")
NOT_ASCII = re.compile(r"[^\n -~]")  # nor a line end


@dataclass
class Settings:
    """Set by options of any verb, read where an error ends."""

    debug: bool = False
    failed: bool = False  # a check or a gate, whether or not somebody reads to the end what is printed of it
    kept_in: Path | None = None  # where the work of an interrupted command goes on
    kept_files: str = ""  # the pattern of files there that hold some of it
    way_on: str = ""  # what is added to the command to do so


settings = Settings()


def set_debug(debug: bool) -> None:
    settings.debug = settings.debug or debug


MODEL_HELP = "A hub id, a folder, a .gguf file, or the installed smollm2 or gemma3-270m."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Format = Annotated[Literal["table", "json"], typer.Option("--format", help="What goes to stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes, errors only.")]
Debug = Annotated[bool, typer.Option("--debug", callback=set_debug, help="Show the traceback of an error.")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, mps...")]
Tokenizer = Annotated[str | None, typer.Option(help="Take the tokenizer from this folder or hub id.")]
Column = Annotated[
    str | None,
    typer.Option(help="The column of tables and datasets with the text. [default: text]", show_default=False),
]
Special = Annotated[
    Literal["text", "parse"],
    typer.Option(help="Read strings that are special tokens, such as <|endoftext|>, as text or as those tokens."),
]
SpecialOfProtocol = Annotated[
    Literal["auto", "text", "parse"],
    typer.Option(
        help="Read strings that are special tokens as text, or as those tokens. [default: as the protocol does]",
        show_default=False,
    ),
]
Chat = Annotated[
    Literal["assistant", "all"],
    typer.Option(
        help="Whose turns of messages count: the assistant's, or all. What the chat template adds never does."
    ),
]
Bos = Annotated[
    Literal["auto", "every", "first", "none"],
    typer.Option(
        help="Which windows of sliding begin with BOS: every, the first of each document, or none. "
        "[default: every where the tokenizer adds it, else first]",
        show_default=False,
    ),
]
SplitAt = Annotated[
    str | None,
    typer.Option(
        metavar="STRING",
        help="Split text files into documents at this string, such as <|endoftext|>; it belongs to none.",
        show_default=False,
    ),
]
BadRows = Annotated[
    Literal["stop", "skip"],
    typer.Option(help="What is done about rows of tables without a text, or malformed; those skipped are listed."),
]
Limit = Annotated[int | None, typer.Option(help="Read the first documents only, this many.")]
Errors = Annotated[Literal["strict", "replace"], typer.Option(help="What is done about text that is not UTF-8.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the Python code that comes with the model or tokenizer. Read it first."
    ),
]
AllowUnusedWeights = Annotated[
    bool,
    typer.Option("--allow-unused-weights", help="Load a model though its config.json leaves some weights unused."),
]


def leads() -> bool:
    """Whether this process is the one that speaks, of those that torchrun may have started."""
    return os.environ.get("RANK", "0") == "0"


def as_options(message: str) -> str:
    """A message of the library, in which arguments are named as on the command line.

    >>> print(as_options("a: not UTF-8; `errors='replace'` reads it, `resume=True` goes on, or give another `out`"))
    a: not UTF-8; --errors replace reads it, --resume goes on, or give another --out
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1], (found[2] or "").strip("'\"")
        flag = f"--{SHORT.get(name, name).replace('_', '-')}"
        return flag if value in ("", "True") else f"{flag} {shlex.quote(value)}"

    return ARGUMENT.sub(option, message)


def width(file: TextIO) -> int:
    """The columns of a file: COLUMNS, else the terminal's, else 80."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    try:
        return os.get_terminal_size(file.fileno()).columns or COLUMNS
    except (OSError, ValueError):  # it is no terminal, or no file of the system's
        return COLUMNS


def wrapped(text: str, width: int, indent: str = "") -> str:
    """The text, made visible, as lines broken between words; a longer word is kept whole."""
    return "\n".join(
        textwrap.wrap(visible(text), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    )


def as_note(text: str) -> str:
    """The text as lines for stderr."""
    return wrapped(as_options(text), width(sys.stderr), "  ")


def say(text: str) -> None:
    """What a reader is told on stderr."""
    print(as_note(text), file=sys.stderr, flush=True)


def say_in_one_line(text: str) -> None:
    """A line on stderr, however long, as tools that read it expect of errors."""
    print(visible(as_options(text)), file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Say what went wrong, where anybody still listens: what cannot be said must not change the exit status."""
    who = "cynosure" if leads() else f"cynosure (process {os.environ['RANK']})"
    with suppress(OSError):
        say_in_one_line(f"{who}: {message}")


def note(notes: Iterable[str], quiet: bool) -> None:
    """What a reader of the results must know, each once."""
    for text in () if quiet else dict.fromkeys(notes):
        say(f"cynosure: note: {text}")


class Line(logging.Formatter):
    """A note of the library's as it is shown."""

    def format(self, record: logging.LogRecord) -> str:
        return as_note(f"cynosure: {record.getMessage()}")


class Once(logging.Filter):
    """Passes over a line that has been said already: a corpus may be read several times."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        size = len(self.said)
        self.said.add(record.getMessage())
        return len(self.said) > size


def show_notes(quiet: bool) -> None:
    """Let the library's notes, such as a conversion that takes a while, through to stderr."""
    logger = logging.getLogger("cynosure")
    logger.handlers.clear()
    logger.addHandler(logging.NullHandler() if quiet or not leads() else logging.StreamHandler(sys.stderr))
    logger.handlers[0].setFormatter(Line())
    logger.handlers[0].addFilter(Once())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def print_json(value: Any) -> None:
    """The value on stdout, with JSON's own escapes for every character that does not print."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    print(NOT_ASCII.sub(lambda found: found[0] if found[0].isprintable() else json_escape(found[0]), text))


def json_escape(character: str) -> str:
    r"""A character as JSON may write it in ASCII.

    >>> print(json_escape("\x7f"), json_escape("\u202e"))
    \u007f \u202e
    """
    return r"\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
