"""Run a function in a separate process at the other end of a pipe, and report why it died."""

import multiprocessing
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


class CutOff(Exception):
    """The process did not answer in time and was killed."""


class Died(Exception):
    """The process ended without an answer. The message is its last output."""


class Process:
    """Runs `target(pipe, log, *arguments)` in a fresh interpreter."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would share the parent's libraries and their threads
        self._pipe, theirs = spawn.Pipe()
        self._folder = tempfile.TemporaryDirectory(prefix="cynosure-bench-")
        self._log = Path(self._folder.name) / "log.txt"
        self._process = spawn.Process(target=target, args=(theirs, str(self._log), *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, message: Any, seconds: float) -> Any:
        """Send a message and wait for the answer."""
        try:
            self._pipe.send(message)
        except BrokenPipeError:
            raise Died(self._last_word()) from None
        return self.answer(seconds)

    def answer(self, seconds: float | None) -> Any:
        """Wait for the next answer. Raises CutOff or Died; the process has ended in both cases."""
        if not self._pipe.poll(seconds):
            self.end()
            raise CutOff
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise Died(self._last_word()) from None

    def end(self, patience: float = 0.0) -> None:
        """Ask the process to end, wait `patience` seconds, then kill it. May be called twice."""
        if patience and not self._pipe.closed:
            with suppress(BrokenPipeError):
                self._pipe.send(None)
            self._process.join(patience)
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._folder.cleanup()

    def _last_word(self) -> str:
        self._process.join()
        code = self._process.exitcode or 0
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        self.end()
        if code < 0:
            name = signal.Signals(-code).name
            return f"ended by {name}" + (", which a system out of memory sends" if name == "SIGKILL" else "")
        return lines[-1] if lines else f"ended with status {code}"
