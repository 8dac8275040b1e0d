"""Entry point of the `cynosure` script: runs the command line, or says in one line which extra is missing."""

import io
import os
import signal
import sys
from contextlib import suppress

from cynosure.system.escapes import visible
from cynosure.system.extras import missing


class ForTexts(io.TextIOBase):
    """Standard input that only the text named `-` can read, through `buffer`; other readers find it empty.

    Some libraries ask questions on standard input, and a piped text must never answer them.
    """

    def __init__(self, buffer: io.BufferedReader) -> None:
        self.buffer = buffer

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        return ""

    def read(self, size: int | None = -1, /) -> str:
        return ""


def keep_stdin_for_texts() -> None:
    """Replace `sys.stdin` by `ForTexts`, and its file descriptor by an empty file."""
    try:
        texts, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return  # standard input is closed
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = ForTexts(os.fdopen(texts, "rb"))


def main() -> None:
    """Run the command line. Exit with status 2 if a package is missing or broken."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # run the clean-up of temporary and partial files
    keep_stdin_for_texts()
    try:
        from cynosure.cli.app import main as run

        run()
    except KeyboardInterrupt:  # while the command line was still being imported
        with suppress(OSError):
            print("cynosure: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except ImportError as error:
        line = missing("this command", error.name) if isinstance(error, ModuleNotFoundError) else None
        with suppress(OSError):
            message = line or f"{type(error).__name__}: {visible(str(error))}: reinstall it"
            print(f"cynosure: {message}", file=sys.stderr, flush=True)
        sys.exit(2)
