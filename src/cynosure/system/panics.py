"""Panics of libraries written in Rust: told by their exception, without what Rust prints by itself."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

ONE_AT_A_TIME = threading.Lock()


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust panicked; pyo3 makes that a BaseException, and exports no name for it."""
    return type(error).__name__ == "PanicException"


def is_failure(error: BaseException) -> bool:
    """Whether something failed, in Python or in Rust; anything else, such as KeyboardInterrupt, ends the program."""
    return isinstance(error, Exception) or is_panic(error)


@cache
def written() -> int:
    """Where file descriptor 2 leads meanwhile: one file for a process, as making one takes longer than a short call."""
    handle, path = tempfile.mkstemp()
    with suppress(OSError):  # of Windows, where it goes with the process
        os.unlink(path)
    return handle


@contextmanager
def quiet_panic() -> Iterator[None]:
    """Drop what Rust writes to file descriptor 2 when it panics; anything else written there appears afterwards.

    Of several threads the first one only, for the descriptor is the process's.
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
