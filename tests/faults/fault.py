"""What a planted fault is."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One wrong line that somebody could write, and where it should be noticed."""

    name: str
    file: str  # below src/cynosure/
    old: str  # stands once in the file; a formula rather than names, so that it survives a renaming
    new: str
    breaks: str
    tests: str  # files and folders below tests/ that should see it, tried before all others
