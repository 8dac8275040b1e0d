"""Write files atomically (write to a temporary name, flush to disk, rename), and hash them."""

import hashlib
import os
import secrets
import shutil
import stat
from pathlib import Path

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
DEVICES = Path("/dev")  # /dev/stdout is a link and must stay one
BLOCK_BYTES = 1 << 20  # read at once


def sha256(*paths: Path) -> str:
    """Return the SHA-256 of the concatenated files, in hexadecimal; takes about a second per gigabyte."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def flush(path: Path) -> None:
    """Flush a file or folder to disk, so that it is whole after a later rename, even after a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a folder, a file or a link, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to disk, then rename it: the file is whole or absent.

    A link, pipe or device at `path` is replaced; the target of a link is not changed. An existing file keeps its
    permissions.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    try:
        try:
            handle = os.open(
                partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | NO_FOLLOW | getattr(os, "O_BINARY", 0), 0o666
            )
            with open(handle, "wb") as file:
                if path.is_file() and not path.is_symlink():
                    os.chmod(partial, stat.S_IMODE(path.stat().st_mode))
                file.write(data)
                file.flush()
                os.fsync(handle)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_writable(path: Path, option: str) -> None:
    """Raise ValueError if no file can be at the path of an option, before work is done for it."""
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option}: no such folder: {path.parent}. Make it first")


def write_out(path: Path, data: bytes) -> None:
    """`write_whole` for an output path that a user names; a pipe or device, such as /dev/stdout, is written to."""
    if path.parent == DEVICES or (path.exists() and not (path.is_file() or path.is_dir())):
        path.write_bytes(data)
    else:
        write_whole(path, data)
