"""Hide the messages of transformers."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide logs and progress bars of transformers. One bar ignores its settings, so stderr is redirected too."""
    with calm_transformers(logging.CRITICAL), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def calm_transformers(verbosity: int = logging.ERROR) -> Iterator[None]:
    """Hide warnings of transformers, and the progress bars that can be switched off."""
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
