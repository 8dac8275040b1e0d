"""One text for commands that take words as well as the name of what holds a text."""

import glob
import logging
from pathlib import Path

from cynosure.text.documents import read_documents
from cynosure.text.sources import find_sources, looks_like_file, path_kind

log = logging.getLogger("cynosure")


def one_text(given: str) -> str:
    """The words themselves, or the first document of the file, folder, glob, pipe or standard input of that name.

    FileNotFoundError for what looks like a file and is not there: its name would be read as words.

    >>> one_text("The capital of France is")
    'The capital of France is'
    """
    there = given == "-" or (given.strip() and path_kind(Path(given).expanduser()) is not None)
    globbed = looks_like_file(given) and glob.has_magic(given)
    if not (there or globbed):
        if looks_like_file(given):
            raise FileNotFoundError(
                f"there is no file {given!r}; if these are words, pipe them in: echo {given!r} | cynosure ... -"
            )
        return given
    documents = read_documents(find_sources([given], datasets=False))
    first = next(documents, None)
    if first is None:
        raise ValueError(f"there is no document in {given!r}: give a file with a text")
    if first.name != given and given != "-":
        log.info("of %s the first document is read, %s", given, first.name)
    elif there and not looks_like_file(given) and given != "-":
        log.info("%s is a file here and is read; pipe it in to give it as words", given)
    return first.text
