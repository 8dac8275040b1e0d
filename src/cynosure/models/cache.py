"""Folders in the cache: sealed with a digest of every file, and verified before they are used again."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cynosure.system.files import flush, remove, sha256

SEAL = "cynosure.sha256.json"  # in a folder: the digest of every other file
CHECKED_HOURS = 24  # after that the digests are computed again, though no file seems to have changed


def seal(folder: Path, expected: tuple[str, ...] = ()) -> None:
    """Write the digests of a folder's files beside them, and all of it to disk.

    Raises OSError where no file matches one of the patterns `expected`: something removed it meanwhile.
    """
    for pattern in expected:
        if not any(folder.glob(pattern)):
            raise OSError(f"{folder / pattern} was removed while the folder was written; try again")
    digests = {path.name: sha256(path) for path in files_of(folder)}
    (folder / SEAL).write_text(json.dumps(digests, indent=1), encoding="utf-8")
    for path in (*files_of(folder), folder / SEAL, folder):
        flush(path)


def is_whole(folder: Path) -> bool:
    """Whether a sealed folder holds what was written.

    Sizes and times of modification are compared first. Where they changed since the digests were last computed, or that
    was a day ago, the digests are computed again: about a second a gigabyte.
    """
    try:
        digests = json.loads((folder / SEAL).read_bytes())
        now = stamp(folder)
        if set(now) != set(digests):
            return False
        if recently(folder, now):
            return True
        if any(sha256(folder / name) != digest for name, digest in digests.items()):
            return False
    except (OSError, ValueError, TypeError, RecursionError):
        return False
    with suppress(OSError):  # a cache that is only read is verified each time
        stamp_file(folder).write_text(json.dumps({"at": time.time(), "files": now}), encoding="utf-8")
    return True


def recently(folder: Path, now: dict[str, Any]) -> bool:
    """Whether the same files were verified less than a day ago; a stamp from the future counts for nothing."""
    try:
        kept = json.loads(stamp_file(folder).read_bytes())
        return bool(kept["files"] == now and 0 <= time.time() - kept["at"] < CHECKED_HOURS * 3600)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def stamp(folder: Path) -> dict[str, Any]:
    """Size and time of modification of each file, by name."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files_of(folder)}


def stamp_file(folder: Path) -> Path:
    """Where the state of a folder at its last verification is kept: beside it, for the folder stays as it was."""
    return folder.with_name(f"{folder.name}.verified")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != SEAL)


def discard(folder: Path) -> None:
    """Remove a damaged folder, or whatever stands in its place."""
    stamp_file(folder).unlink(missing_ok=True)
    remove(folder)


@contextmanager
def usable(home: Path) -> Iterator[None]:
    """OSError, in one sentence, for a cache that cannot be read or written."""
    try:
        yield
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(home.parent)):
            raise
        raise OSError(
            f"cannot use the cache, {home}: {error.strerror}: {error.filename}; CYNOSURE_CACHE names another"
        ) from error
