"""Seal folders in the cache with a digest of every file, and verify them before each use."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cynosure.system.files import flush, remove, sha256

SEAL = "cynosure.sha256.json"  # in each folder: the digests of all other files
CHECKED_HOURS = 24  # after that the digests are computed again even if no file seems to have changed


def seal(folder: Path, expected: tuple[str, ...] = ()) -> None:
    """Write the digests of a folder's files beside them, and flush everything to disk.

    Raises OSError if no file matches one of the patterns in `expected`: something removed it meanwhile.
    """
    for pattern in expected:
        if not any(folder.glob(pattern)):
            raise OSError(f"{folder / pattern} was removed while the folder was written; try again")
    digests = {path.name: sha256(path) for path in files_of(folder)}
    (folder / SEAL).write_text(json.dumps(digests, indent=1), encoding="utf-8")
    for path in (*files_of(folder), folder / SEAL, folder):
        flush(path)


def is_whole(folder: Path) -> bool:
    """Whether the files of a sealed folder are as they were written.

    Sizes and modification times are compared first. If they changed since the digests were last computed, or if that
    was over a day ago, the digests are computed again. That takes about a second per gigabyte.
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
    with suppress(OSError):  # a read-only cache is verified each time
        stamp_file(folder).write_text(json.dumps({"at": time.time(), "files": now}), encoding="utf-8")
    return True


def recently(folder: Path, now: dict[str, Any]) -> bool:
    """Whether the same files were verified less than a day ago. A stamp from the future is ignored."""
    try:
        kept = json.loads(stamp_file(folder).read_bytes())
        return bool(kept["files"] == now and 0 <= time.time() - kept["at"] < CHECKED_HOURS * 3600)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def stamp(folder: Path) -> dict[str, Any]:
    """Return size and modification time of each file, by name."""
    return {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in files_of(folder)}


def stamp_file(folder: Path) -> Path:
    """Return the file that records a folder's last verification: beside the folder, which stays unchanged."""
    return folder.with_name(f"{folder.name}.verified")


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != SEAL)


def discard(folder: Path) -> None:
    """Remove a damaged folder, or anything else in its place."""
    stamp_file(folder).unlink(missing_ok=True)
    remove(folder)


@contextmanager
def usable(home: Path) -> Iterator[None]:
    """Turn an OSError of a cache that cannot be read or written into one sentence."""
    try:
        yield
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(home.parent)):
            raise
        raise OSError(
            f"cannot use the cache, {home}: {error.strerror}: {error.filename}; set CYNOSURE_CACHE to another folder"
        ) from error
