"""Read one text for commands that take either words or the name of a file."""

import glob
import logging
from pathlib import Path

from cynosure.text.documents import read_documents
from cynosure.text.sources import find_sources, looks_like_file, path_kind

log = logging.getLogger("cynosure")


def one_text(given: str) -> str:
    """Return the words as given, or the first document of the file, folder, glob, pipe or standard input so named.

    Args:
        given: words, or a name.

    Returns:
        The text.

    Raises:
        FileNotFoundError: `given` looks like a file name, but there is no such file.
        ValueError: the file has no document.

    Example:
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
        raise ValueError(f"no document in {given!r}: give a file with a text")
    if first.name != given and given != "-":
        log.info("only the first document of %s is read, %s", given, first.name)
    elif there and not looks_like_file(given) and given != "-":
        log.info("%s is read, because it is a file here; pipe it in to give it as words", given)
    return first.text
