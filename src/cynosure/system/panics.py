"""Catch panics of Rust libraries, and hide what Rust itself prints to standard error."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

ONE_AT_A_TIME = threading.Lock()


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust panicked: pyo3 raises a BaseException whose class it does not export."""
    return type(error).__name__ == "PanicException"


def is_failure(error: BaseException) -> bool:
    """Whether an error is a failure of Python or Rust code; any other, e.g. KeyboardInterrupt, ends the program."""
    return isinstance(error, Exception) or is_panic(error)


@cache
def written() -> int:
    """Return a temporary file that replaces file descriptor 2; one per process, since creating one is slow."""
    handle, path = tempfile.mkstemp()
    with suppress(OSError):  # Windows removes it when the process ends
        os.unlink(path)
    return handle


@contextmanager
def quiet_panic() -> Iterator[None]:
    """Drop what Rust writes to file descriptor 2 when it panics; anything else written there appears afterwards.

    Only one thread at a time diverts the descriptor, which belongs to the whole process; others run undiverted.
    """
    if not ONE_AT_A_TIME.acquire(blocking=False):
        yield
        return
    try:
        with diverted():
            yield
    finally:
        ONE_AT_A_TIME.release()


@contextmanager
def diverted() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    panicked, file = False, written()
    os.dup2(file, 2)
    try:
        yield
    except BaseException as error:
        panicked = is_panic(error)
        raise
    finally:
        os.dup2(kept, 2)
        if size := os.lseek(file, 0, os.SEEK_CUR):
            data = b"" if panicked else os.pread(file, size, 0)
            os.lseek(file, 0, os.SEEK_SET)
            os.write(2, data)
        os.close(kept)
