"""Check that an output folder is ours, and lock it for one process."""

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
except ImportError:  # Windows: a second process is not kept out
    fcntl = None  # type: ignore[assignment]

from cynosure.system.files import NO_FOLLOW

LOCK = ".cynosure.lock"
# Files that systems and users put into any folder. We ignore them: we never read, change or remove one.
SYSTEM_FILES = re.compile(r"\.DS_Store|\.gitignore|\.gitkeep|\.nfs[0-9a-f]+|lost\+found|\.lock")
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
NOT_A_FILE = {errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO}  # what opening a link, folder or socket raises
TRIES = 100  # at taking the lock, while other processes keep removing its file

log = logging.getLogger("cynosure")


def first_foreign(folder: Path, is_ours: Callable[[str], bool]) -> str | None:
    """Return the first name in a folder that is not ours. Hidden files count, those of `SYSTEM_FILES` do not."""
    names = sorted(os.listdir(folder))
    return next((name for name in names if not (name == LOCK or SYSTEM_FILES.fullmatch(name) or is_ours(name))), None)


def check_is_folder(path: Path) -> None:
    """Raise ValueError if the path exists and is not a folder."""
    if not path.is_dir() and (path.exists() or path.is_symlink()):
        what = "a file" if path.exists() else "a link that leads nowhere"
        raise ValueError(f"{path} is {what}: give a folder as `out`")


@contextmanager
def locked(folder: Path, doing: str, check: Callable[[], None]) -> Iterator[bool]:
    """Lock a folder for this process, creating it if needed; the system releases the lock when the process dies.

    `check` raises ValueError if the folder is not ours. It runs before anything is created, and again under the lock.
    The lock is a file that is never truncated; its holder removes it at the end. A process may lock a file that has
    been removed meanwhile. It then tries again, so that two processes never hold the same folder.

    Yields whether the folder is writable; a read-only folder is not locked. A folder that was created here and is still
    empty at the end is removed.

    Raises ValueError if another process holds the folder, or if the lock's name is taken by something else.
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
    """Return an open file that holds the lock of a folder; None if the folder is read-only."""
    busy = ValueError(f"another process is {doing} {folder}: wait for it, or give another `out`")
    for _ in range(TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = open_lock(folder / LOCK)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        except FileExistsError:  # it was removed while mkdir checked that it is a folder
            if folder.exists() and not folder.is_dir():
                raise
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
    """Open the lock file, creating it if needed; None if its folder is read-only."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | NO_FOLLOW, 0o666)
    except OSError as error:
        if error.errno in NOT_A_FILE:
            raise no_lock(path) from error
        if error.errno == errno.EROFS or (error.errno in READ_ONLY and not os.access(path.parent, os.W_OK)):
            return None
        if error.errno not in READ_ONLY:
            raise
        handle = os.open(path, os.O_RDONLY | NO_FOLLOW)  # another user's lock, in a shared folder
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size:
        os.close(handle)
        raise no_lock(path)
    return handle


def no_lock(path: Path) -> ValueError:
    return ValueError(f"{path} is not a lock file of cynosure: move it away, or give another `out`")


def flock(handle: int, folder: Path) -> None:
    """Lock an open file; warn if the file system has no locks. Raises BlockingIOError if another process holds it."""
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
