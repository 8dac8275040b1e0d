"""Resolve names to sources: files, folders, globs, pipes and datasets, without reading them."""

import errno
import glob
import logging
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cynosure.system.files import sha256
from cynosure.system.numbers import counted
from cynosure.text.binary import HEAD, binary_kind, check_text
from cynosure.text.tables import holds_documents
from cynosure.text.unpacking import endings, opened

KINDS = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
ONCE = ("pipe", "stdin")  # kinds that can be read only once
TEXTS = ("text", *ONCE)  # kinds that are not tables
DATASET = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?(:\w[\w.-]*){0,2}")
EXTENSIONS = (*KINDS, ".txt", ".text", ".md", ".log", ".html", ".xml", ".py", ".tex", ".rst")  # that mark a file name
WORDS = 'to score words, pipe them in: echo "some words" | cynosure score MODEL -'
SHOWN = 80  # characters of a missing name in an error
LISTED = 5  # names in a note
READ = "a file, a folder, a glob, '-' or a pipe"
READ_PATH = "a file, a folder or a pipe"  # that a Path can stand for

log = logging.getLogger("cynosure")


class Source(NamedTuple):
    """Something that holds documents."""

    kind: str  # text, json, jsonl, csv, tsv, parquet, pipe, stdin, dataset
    name: str
    n_bytes: int | None  # None if the size is unknown before reading


def find_sources(names: Sequence[str | Path], *, column: str | None = None, datasets: bool = True) -> list[Source]:
    """Resolve names to sources without reading them.

    Folders, and links to folders, are walked in sorted order, each once. Hidden files are left out. Binary files, and
    `.json` files without a row of text, are left out of a folder or a glob with a note; a binary file that is named
    itself is an error. A file that is found several times is read once.

    Args:
        names: files, folders, globs, `-` for standard input, or datasets (`name`, `name:config` or
            `name:config:split`). A Path is a file or folder, never `-`, a glob or a dataset.
        column: the column that holds the text, to recognize `.json` files.
        datasets: whether a name may be a dataset.

    Returns:
        The sources, in order.

    Raises:
        FileNotFoundError: a name matches nothing.
        ValueError: a name is something that cannot be a text.
    """
    found: dict[Any, Source] = {}  # by identity
    left_out: dict[str, str] = {}  # the reason, by name
    sources = (source for name in names for source in expand(name, column, datasets, left_out))
    for number, source in enumerate(sources):
        known = found.setdefault(identity(source, number), source)
        if known is not source:
            why = "it is named twice" if source.name == known.name else f"{source.name} is the same file"
            log.info("%s is read once: %s", known.name, why)
    if left_out:
        log.info(describe_left_out(left_out))
    return list(found.values())


def describe_left_out(left_out: dict[str, str]) -> str:
    """Describe the files that are left out in one sentence.

    >>> describe_left_out({"d/a.png": "binary", "d/b.pt": "binary", "d/config.json": "no table"})
    '3 files are left out: 2 binary (d/a.png, d/b.pt), 1 no table (d/config.json)'
    """
    parts = []
    for why in dict.fromkeys(left_out.values()):
        names = [name for name, reason in left_out.items() if reason == why]
        more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
        parts.append(f"{len(names):,} {why} ({', '.join(names[:LISTED])}{more})")
    are = "is" if len(left_out) == 1 else "are"
    return f"{counted(len(left_out), 'file')} {are} left out: {', '.join(parts)}"


def total_bytes(sources: Sequence[Source]) -> int | None:
    """Return the size of all sources in bytes, for progress; None if one is unknown or compressed."""
    sizes = [None if endings(source.name)[1] else source.n_bytes for source in sources]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def identity(source: Source, number: int) -> Any:
    """Return a key that two sources share if they are the same file. Each mention of a dataset has its own key."""
    if source.kind == "dataset":
        return number
    if source.kind == "stdin":
        return source.kind
    facts = os.stat(source.name)
    return facts.st_dev, facts.st_ino


def expand(name: str | Path, column: str | None, datasets: bool, left_out: dict[str, str]) -> Iterable[Source]:
    if name == "-":
        return [Source("stdin", "<stdin>", None)]
    path = Path(os.path.expanduser(name))
    kind = path_kind(path) if name else None
    if kind == "file":
        check_text(head_of(path), str(path))
        return [file_source(path)]
    if kind == "pipe":
        return [Source("pipe", str(path), None)]
    if kind == "folder":
        return members(name, files_below(path), column, left_out)
    if kind is not None:
        raise ValueError(f"{name} is {kind}, not a text: give {READ_PATH if isinstance(name, Path) else READ}")
    if isinstance(name, Path):
        raise FileNotFoundError(f"no such text: there is no file or folder {str(name)!r}")
    if not name:
        raise FileNotFoundError(f"no such text: a name is empty; give {READ}")
    if glob.has_magic(name):
        return members(name, sorted(set(globbed(str(path))), key=str), column, left_out)
    if datasets and DATASET.fullmatch(name) and (not path.suffix or ":" in name):
        return [Source("dataset", name, None)]
    shown = name if len(name) <= SHOWN else f"{name[:SHOWN]}..."
    hint = hint_for_words(name)
    raise FileNotFoundError(f"no such text: {shown!r} is not a file, folder, glob, '-' or dataset name{hint}")


def path_kind(path: Path) -> str | None:
    """Return what is at a path: `file`, `folder`, `pipe`, or words for something unreadable; None if nothing is."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return "a broken link" if os.path.islink(path) else None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads back to itself"
        if error.errno == errno.ENAMETOOLONG:  # words, not a name
            return None
        raise
    kinds = {
        stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    }  # fmt: skip
    return kinds.get(stat.S_IFMT(mode), "a special file")


def looks_like_file(name: str) -> bool:
    """Whether a name that does not exist was meant as a file name, not as words.

    >>> [looks_like_file(name) for name in ("data/a", "notes.txt", "a.jsonl.gz", "and/or not", "Paris", "The end.")]
    [True, True, True, False, False, False]
    """
    extension, folder = endings(name)[0] in EXTENSIONS, os.sep in name
    return (extension and folder) or ((extension or folder) and not any(map(str.isspace, name)))


def hint_for_words(name: str | Path) -> str:
    return "" if isinstance(name, Path) or looks_like_file(name) else f"; {WORDS}"


def members(name: str | Path, paths: Iterable[Path], column: str | None, left_out: dict[str, str]) -> list[Source]:
    """Return the texts and tables among the files of a folder or glob. Raise FileNotFoundError if there are none."""
    sources, unfit = [], {}
    for path in paths:
        why = why_unfit(path, column)
        if why is None:
            sources.append(file_source(path))
        else:
            unfit[str(path)] = why
    if not sources:
        shown = repr(str(name))
        why = (
            f"no text in {shown}: {describe_left_out(unfit)}" if unfit else f"no files in {shown}{hint_for_words(name)}"
        )
        raise FileNotFoundError(why)
    left_out |= unfit
    return sources


def why_unfit(path: Path, column: str | None) -> str | None:
    """Say why a file of a folder is neither a text nor a table of texts; None if it may be one."""
    if (kind := path_kind(path)) != "file":
        return (kind or "gone").removeprefix("a ")
    if (binary := binary_kind(head_of(path))) is not None:
        return binary if binary.startswith("UTF-16") else "binary"
    if file_source(path).kind == "json" and not holds_documents(str(path), column):
        return "no table"
    return None


def head_of(path: Path) -> bytes:
    """Return the beginning of a file, unpacked; empty for a Parquet file, whose reader reports what is wrong."""
    if file_source(path).kind == "parquet":
        return b""
    try:
        with opened(str(path)) as file:
            return file.read(HEAD)
    except ValueError:  # damaged compression is reported when the file is read
        return b""


def files_below(folder: Path) -> list[Path]:
    """Return the files of a folder and all folders below it, sorted, without hidden ones."""
    below = (entry for here in folders_below(folder) for entry in entries(here))
    return sorted(Path(entry.path) for entry in below if not os.path.isdir(entry.path))


def folders_below(folder: Path) -> Iterator[Path]:
    """Yield a folder and those below it, links last. Each is yielded once, even if links lead to it again."""
    known: dict[tuple[int, int], Path] = {}
    waiting = deque([folder])
    while waiting:
        here = waiting.popleft()
        facts = here.stat()
        first = known.setdefault((facts.st_dev, facts.st_ino), here)
        if first is not here:
            log.info("%s is the same folder as %s and is read once", here, first)
            continue
        yield here
        below = [entry for entry in entries(here) if os.path.isdir(entry.path)]
        waiting.extendleft(here / entry.name for entry in reversed(below) if not entry.is_symlink())
        waiting.extend(here / entry.name for entry in below if entry.is_symlink())


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name, without hidden files."""
    with os.scandir(folder) as inside:
        return sorted((entry for entry in inside if not entry.name.startswith(".")), key=lambda entry: entry.name)


def globbed(pattern: str) -> Iterator[Path]:
    """Yield the files of a glob. `**` matches any folders; a folder that matches the whole pattern is walked."""
    before, star, after = partition_at_stars(pattern)
    if not star:
        for path in map(Path, glob.glob(pattern)):
            yield from files_below(path) if path.is_dir() else [path]
        return
    for base in map(Path, glob.glob(before) if before else ["."]):
        for folder in folders_below(base) if base.is_dir() else ():
            inside = os.path.join(glob.escape(str(folder)), after or "*")
            if "**" in Path(after).parts:
                yield from globbed(inside)
            else:
                yield from (path for path in map(Path, glob.glob(inside)) if not path.is_dir())


def partition_at_stars(pattern: str) -> tuple[str, str, str]:
    """Split a glob into the part before its first `**`, the `**`, and the part after it."""
    parts = Path(pattern).parts
    at = parts.index("**") if "**" in parts else len(parts)
    return os.path.join("", *parts[:at]), "".join(parts[at : at + 1]), os.path.join("", *parts[at + 1 :])


def file_source(path: Path) -> Source:
    kind, packing = endings(path.name)
    if kind == ".parquet" and packing:
        raise ValueError(f"{path} is compressed twice: Parquet is compressed inside; unpack the file first")
    return Source(KINDS.get(kind, "text"), str(path), path.stat().st_size)


def source_digest(source: Source) -> str | None:
    """Return the SHA-256 of a file, in hexadecimal; None for a source that is not a file."""
    if source.kind in (*ONCE, "dataset"):
        return None
    return sha256(Path(source.name))
