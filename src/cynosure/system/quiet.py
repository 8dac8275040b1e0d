"""Transformers without its messages."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without what transformers logs, and its progress bars; one bar ignores the setting, so stderr is kept from it."""
    with calm_transformers(logging.CRITICAL), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def calm_transformers(verbosity: int = logging.ERROR) -> Iterator[None]:
    """Hide the warnings of transformers, and those of its progress bars that can be switched off."""
    from transformers.utils import logging as module

    theirs: Any = module
    level, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(verbosity)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bars:
            theirs.enable_progress_bar()
