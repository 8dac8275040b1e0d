"""What the commands share: options, examples, notes and JSON output."""

import errno
import json
import logging
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from cynosure.system.escapes import visible

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
COLUMNS = 80  # of output that is not a terminal
# Arguments as the library's messages name them: `bad_rows`, `bad_rows='skip'`. `as_options` translates them to options.
NAMED = (
    "allow_unused_weights", "bad_rows", "batch_tokens", "bos", "chat", "column", "device", "errors", "grad_tolerance",
    "init", "keep_documents_whole", "learning_rate", "lora", "out", "overlong", "preset", "resume", "revision",
    "row_tokens", "special", "split_at", "tokenizer", "trust_remote_code", "valid", "vocab_size",
)  # fmt: skip
SHORT = {"learning_rate": "lr", "vocab_size": "vocab"}
ARGUMENT = re.compile(rf"`({'|'.join(NAMED)})(?:=([^`]*))?`")
NOT_ASCII = re.compile(r"[^\n -~]")  # line ends are kept


@dataclass
class Settings:
    """State that commands set and the error handler reads."""

    debug: bool = False
    failed: bool = False  # a check or gate has failed; the exit status says so even if the output pipe breaks
    kept_in: Path | None = None  # directory from which an interrupted command can resume
    kept_files: str = ""  # glob pattern of the files there that hold finished work
    way_on: str = ""  # what to add to the command to resume


settings = Settings()


def set_debug(debug: bool) -> None:
    settings.debug = settings.debug or debug


MODEL_HELP = "Model: hub id, directory, .gguf file, or a packaged model (smollm2, gemma3-270m)."

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Format = Annotated[Literal["table", "json"], typer.Option("--format", help="Output format on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Hide progress and notes; show errors only.")]
Debug = Annotated[bool, typer.Option("--debug", callback=set_debug, help="Show the traceback of an error.")]
Dtype = Annotated[
    str, typer.Option(help="Dtype of the weights: float32, bfloat16, float16, or auto (as the model is stored).")
]
Device = Annotated[str, typer.Option(help="Device: cpu, cuda, mps, ..., or auto (an accelerator if there is one).")]
Tokenizer = Annotated[
    str | None,
    typer.Option(help="Tokenizer: directory or hub id. [default: the model's]", show_default=False),
]
Column = Annotated[
    str | None,
    typer.Option(help="Column with the text, in tables and datasets. [default: text]", show_default=False),
]
Special = Annotated[
    Literal["text", "parse"],
    typer.Option(help="Read special tokens in the text, e.g. <|endoftext|>, as plain text, or parse them."),
]
SpecialOfProtocol = Annotated[
    Literal["auto", "text", "parse"],
    typer.Option(
        help="Read special tokens in the texts as plain text, or parse them. [default: as the protocol does]",
        show_default=False,
    ),
]
Chat = Annotated[
    Literal["assistant", "all"],
    typer.Option(help="Chat turns to score: the assistant's, or all. Tokens the chat template adds are never scored."),
]
Bos = Annotated[
    Literal["auto", "every", "first", "none"],
    typer.Option(
        help="Windows of protocol sliding that begin with BOS: every, the first of each document, or none. "
        "[default: every if the tokenizer adds BOS, else first]",
        show_default=False,
    ),
]
SplitAt = Annotated[
    str | None,
    typer.Option(
        metavar="STRING",
        help="Split text files into documents at this string, e.g. <|endoftext|>, and drop it. [default: no split]",
        show_default=False,
    ),
]
BadRows = Annotated[
    Literal["stop", "skip"],
    typer.Option(help="What to do with malformed table rows or rows without text: stop, or skip and list them."),
]
Limit = Annotated[
    int | None, typer.Option(help="Maximum number of documents to read. [default: all]", show_default=False)
]
Errors = Annotated[
    Literal["strict", "replace"],
    typer.Option(help="What to do with text that is not UTF-8: stop (strict), or replace the invalid bytes."),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a hub model. [default: the main branch]", show_default=False),
]

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code that comes with the model or tokenizer. Read that code first."
    ),
]
AllowUnusedWeights = Annotated[
    bool,
    typer.Option("--allow-unused-weights", help="Load a model even if its config.json leaves some weights unused."),
]


def shown_examples(commands: Sequence[str]) -> str:
    """Format example commands for the end of a help text; \\b keeps their line breaks."""
    return "\n  ".join(["\b\nExamples:", *commands])


def leads() -> bool:
    """Whether this process is the one that prints: the first of those that torchrun may have started."""
    return os.environ.get("RANK", "0") == "0"


def as_options(message: str) -> str:
    """Replace the argument names in a message of the library by options of the command line.

    >>> print(as_options("a: not UTF-8; `errors='replace'` reads it, `resume=True` resumes, or give another `out`"))
    a: not UTF-8; --errors replace reads it, --resume resumes, or give another --out
    """

    def option(match: re.Match[str]) -> str:
        name, value = match[1], (match[2] or "").strip("'\"")
        flag = f"--{SHORT.get(name, name).replace('_', '-')}"
        return flag if value in ("", "True") else f"{flag} {shlex.quote(value)}"

    return ARGUMENT.sub(option, message)


def width(file: TextIO) -> int:
    """Return the number of columns of a file: $COLUMNS if set, else the terminal's, else 80."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(file.fileno()).columns or COLUMNS
    except (OSError, ValueError):  # not a terminal, or without a file descriptor
        return COLUMNS


def wrapped(text: str, width: int, indent: str = "") -> str:
    """Wrap a text between words, with control characters escaped; longer words stay whole."""
    return "\n".join(
        textwrap.wrap(visible(text), width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    )


def as_note(text: str) -> str:
    """Wrap a text for stderr."""
    return wrapped(as_options(text), width(sys.stderr), "  ")


def say(text: str) -> None:
    """Print a text on stderr, wrapped."""
    print(as_note(text), file=sys.stderr, flush=True)


def say_in_one_line(text: str) -> None:
    """Print one line on stderr, however long: tools that parse errors expect that."""
    print(visible(as_options(text)), file=sys.stderr, flush=True)


def complain(message: str) -> None:
    """Report an error on stderr. A closed stderr must not change the exit status."""
    who = "cynosure" if leads() else f"cynosure (process {os.environ['RANK']})"
    with suppress(OSError):
        say_in_one_line(f"{who}: {message}")


def one_line(error: BaseException) -> str:
    """Return what is wrong and where, in one line; unexpected errors show their type."""
    if hasattr(error, "format_message"):  # raised by the command-line parser
        context = getattr(error, "ctx", None)
        return f"{error.format_message()} (see {context.command_path if context else 'cynosure'} --help)"
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and (error.filename or error.errno in FULL):
        way_out = "; free some space and run the same command again" if error.errno in FULL else ""
        return f"{error.filename or 'standard output'}: {error.strerror.lower()}{way_out}"
    if isinstance(error, UnicodeEncodeError):
        return f"cannot encode the output as {error.encoding} ({error.reason}): set PYTHONIOENCODING=utf-8"
    if isinstance(error, ValueError | OSError):
        return message
    if isinstance(error, MemoryError) or "can't allocate memory" in message:  # torch raises a RuntimeError
        return f"not enough memory: {message or 'an allocation failed'}. Close other programs, or give less at once"
    return f"{type(error).__name__}: {message} (--debug shows the traceback)"


def note(notes: Iterable[str], quiet: bool) -> None:
    """Print notes on the results, each once."""
    for text in () if quiet else dict.fromkeys(notes):
        say(f"cynosure: note: {text}")


class Line(logging.Formatter):
    """Formats log messages of the library as notes."""

    def format(self, record: logging.LogRecord) -> str:
        return as_note(f"cynosure: {record.getMessage()}")


class Once(logging.Filter):
    """Drops a message that has been logged already: a corpus may be read several times."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        size = len(self.said)
        self.said.add(record.getMessage())
        return len(self.said) > size


def show_notes(quiet: bool) -> None:
    """Show log messages of the library on stderr, e.g. that a conversion takes a while."""
    logger = logging.getLogger("cynosure")
    logger.handlers.clear()
    logger.addHandler(logging.NullHandler() if quiet or not leads() else logging.StreamHandler(sys.stderr))
    logger.handlers[0].setFormatter(Line())
    logger.handlers[0].addFilter(Once())
    logger.setLevel(logging.INFO)
    logger.propagate = False


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout, with characters that do not print escaped."""
    print(json_text(value))


def json_text(value: Any) -> str:
    """Return a value as JSON, with characters that do not print escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return NOT_ASCII.sub(lambda match: match[0] if match[0].isprintable() else json_escape(match[0]), text)


def json_escape(character: str) -> str:
    r"""Return a character as an ASCII escape of JSON.

    >>> print(json_escape("\x7f"), json_escape("\u202e"))
    \u007f \u202e
    """
    return r"\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
