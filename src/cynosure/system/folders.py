"""Folders that users name: whose they are, and which process has them."""

import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second process out
    fcntl = None  # type: ignore[assignment]

from cynosure.system.files import NO_FOLLOW

LOCK = ".cynosure.lock"
# What systems and users put into any folder. It makes no folder anyone's; we never read, change or remove it.
SYSTEM_FILES = re.compile(r"\.DS_Store|\.gitignore|\.gitkeep|\.nfs[0-9a-f]+|lost\+found|\.lock")
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
NOT_A_FILE = {errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO}  # what opening a link, folder or socket raises
TRIES = 100  # to lock a file that other processes remove again and again

log = logging.getLogger("cynosure")


def first_foreign(folder: Path, is_ours: Callable[[str], bool]) -> str | None:
    """The first name in a folder that is not ours; hidden files count, those of `SYSTEM_FILES` do not."""
    names = sorted(os.listdir(folder))
    return next((name for name in names if not (name == LOCK or SYSTEM_FILES.fullmatch(name) or is_ours(name))), None)


def check_is_folder(path: Path) -> None:
    """ValueError where the path of a folder leads to something else; nothing where there is nothing yet."""
    if not path.is_dir() and (path.exists() or path.is_symlink()):
        what = "a file" if path.exists() else "a link that leads nowhere"
        raise ValueError(f"{path} is {what}: give a folder as `out`")


@contextmanager
def locked(folder: Path, doing: str, check: Callable[[], None]) -> Iterator[bool]:
    """Keep a folder for this process alone, making it if need be; the system releases it when the process dies.

    `check` raises ValueError where the folder is not ours. It runs before anything is created, and again under the
    lock. The lock is a file of its own name, which is never truncated, and which its holder removes at the end. A
    process that has locked a file that was removed meanwhile tries again, so that no two hold the folder.

    Yields whether the folder can be written; one that cannot is not locked. A folder that was made here and is empty
    in the end is removed.

    Raises ValueError where another process has the folder, or where the lock's name is taken by something else.
    """
    check()
    existed = folder.exists()
    handle = take_lock(folder, doing)
    if handle is None:
        yield False
        return
    try:
        check()
        yield True
    finally:
        with suppress(OSError):
            if is_at(handle, folder / LOCK):
                (folder / LOCK).unlink()
        os.close(handle)
        if not existed:
            with suppress(OSError):  # not empty
                folder.rmdir()


def take_lock(folder: Path, doing: str) -> int | None:
    """An open file that holds the lock of a folder; None where the folder cannot be written."""
    busy = ValueError(f"another process is {doing} {folder}: wait for it, or give another `out`")
    for _ in range(TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = open_lock(folder / LOCK)
        except FileNotFoundError:  # another process has removed the folder that it made
            continue
        if handle is None:
            return None
        try:
            flock(handle, folder)
            if is_at(handle, folder / LOCK):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise busy from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise busy


def open_lock(path: Path) -> int | None:
    """Open the file of a lock, made if need be; None where its folder cannot be written."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | NO_FOLLOW, 0o666)
    except OSError as error:
        if error.errno in NOT_A_FILE:
            raise no_lock(path) from error
        if error.errno == errno.EROFS or (error.errno in READ_ONLY and not os.access(path.parent, os.W_OK)):
            return None
        if error.errno not in READ_ONLY:
            raise
        handle = os.open(path, os.O_RDONLY | NO_FOLLOW)  # another user's, in a folder that both may write
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_size:
        os.close(handle)
        raise no_lock(path)
    return handle


def no_lock(path: Path) -> ValueError:
    return ValueError(f"{path} is not a lock of cynosure: move it away, or give another `out`")


def flock(handle: int, folder: Path) -> None:
    """Lock an open file. BlockingIOError where another process has; a note where the file system has no locks."""
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s: this file system has no locks; do not start a second process in this folder", folder)


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False
