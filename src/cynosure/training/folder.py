"""The folder of a training run: what it is, its figures line by line, and its checkpoints, each whole or absent."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cynosure.system.folders import check_is_folder, first_foreign, locked, write_whole

MANIFEST = "train.json"
METRICS, VALIDATION, SAMPLES = "metrics.jsonl", "validation.jsonl", "samples.jsonl"
LINES = (METRICS, VALIDATION, SAMPLES)
DATA, CHECKPOINTS, VALIDATIONS, SCORES, MODEL = "data", "checkpoints", "validation", "scores", "model"
PARTIAL = ".partial"  # what is being written
TOKENS = "ids.int32"  # in DATA, and in no folder of that name but a run's
LEFTOVER = re.compile(r"train\.json\.[0-9a-f]+\.partial")  # of `write_whole`
STEP = re.compile(r"step-(\d{6,})")
KEPT = 2  # last checkpoints, beside the best
# Of a checkpoint, what no user of its model needs.
TRAINING_ONLY = ("optimizer", "optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "rng_state*")


class RunFolder:
    """A run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def exists(self) -> bool:
        return (self / MANIFEST).is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run is. FileNotFoundError where there is none, ValueError where it cannot be read."""
        if not self.exists:
            raise FileNotFoundError(f"{self.path} holds no training run to go on with: leave --resume out to begin one")
        try:
            found = json.loads((self / MANIFEST).read_bytes())
        except ValueError as error:
            raise ValueError(f"{self / MANIFEST} is not JSON: {error}; give another --out") from error
        if not isinstance(found, dict) or not {"settings", "plan", "facts", "dtype"} <= found.keys():
            raise ValueError(f"{self / MANIFEST} is of no run known here: give another --out")
        return found

    def check_free(self) -> None:
        """ValueError where the folder holds anything that beginning a run would mix with."""
        if self.exists:
            raise ValueError(f"{self.path} holds another run: --resume goes on with that, or give another --out")
        self.check_own()

    def check_own(self) -> None:
        """ValueError where the path is neither the folder of a training run, nor an empty one, nor free.

        Beside a manifest any file may stand. Without one, any other file makes the folder someone else's, hidden ones
        too, except those of `SYSTEM_FILES` and what a run that never began has left.
        """
        check_is_folder(self.path)
        if self.exists:
            self.manifest  # noqa: B018  (raises for what is not a run's)
        elif self.path.is_dir():
            begun = [path.name for path in self.begun]
            if other := first_foreign(self.path, lambda name: name in begun or bool(LEFTOVER.fullmatch(name))):
                raise ValueError(f"{self.path} holds {other} and no training run: give another --out")

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Keep the folder for this process alone, as `cynosure.system.folders.locked` does."""
        with locked(self.path, "training in", self.check_own) as writable:
            yield writable

    @property
    def begun(self) -> list[Path]:
        """All that a run can have left which was stopped before its manifest; never a folder of another's."""
        partial, data = self / PARTIAL, self / DATA
        inside = is_folder(partial) and all(path.name == DATA and is_data(path) for path in partial.iterdir())
        return [*([partial] if inside else []), *([data] if is_data(data) else [])]

    def clear_begun(self) -> None:
        """Remove what a run that never began has left."""
        for path in self.begun:
            shutil.rmtree(path, ignore_errors=True)

    def put(self, name: str, values: dict[str, Any]) -> None:
        write_whole(self / name, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())

    def append(self, name: str, values: dict[str, Any]) -> None:
        """Add a line. A disk that fills up in the middle of one costs that line alone."""
        try:
            with (self / name).open("a", encoding="utf-8") as file:
                file.write(line_of(values))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self / name)) from error

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a file; one that was cut off at the end is not."""
        try:
            text = (self / name).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def rewind(self, step: int) -> None:
        """Forget what came after a step: lines, and half-written things."""
        shutil.rmtree(self / PARTIAL, ignore_errors=True)
        for name in LINES:
            if (self / name).exists():
                kept = [line for line in self.lines(name) if line["step"] <= step]
                text = "".join(map(line_of, kept))
                write_whole(self / name, text.encode())

    @property
    def checkpoints(self) -> dict[int, Path]:
        """By step, in order."""
        found = {}
        for path in sorted((self / CHECKPOINTS).glob("step-*")):
            if match := STEP.fullmatch(path.name):
                found[int(match[1])] = path
        return found

    @property
    def best_step(self) -> int | None:
        """The step of the lowest validation loss, the first of several; None before one."""
        rows = [(row["nats_per_token"]["value"], row["step"]) for row in self.lines(VALIDATION)]
        return min((row for row in rows if row[0] is not None), default=(0.0, None))[1]

    def keep(self, made: Path, step: int) -> None:
        """Put a checkpoint that is whole in its place, and let go of those that are neither best nor among the last."""
        for path in made.rglob("*"):
            if path.is_file():
                flush(path)
        place = self / CHECKPOINTS / f"step-{step:06d}"
        place.parent.mkdir(exist_ok=True)
        if place.exists():
            shutil.rmtree(place)
        made.rename(place)
        flush(place.parent)
        found, best = self.checkpoints, self.best_step
        for old in list(found)[:-KEPT]:
            if old != best:
                shutil.rmtree(found[old])

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A new folder to fill, which takes the place of the one of that name when it is whole."""
        made = self / PARTIAL / name
        shutil.rmtree(made, ignore_errors=True)
        made.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(made):
            yield made
        shutil.rmtree(self / name, ignore_errors=True)
        made.rename(self / name)
        shutil.rmtree(self / PARTIAL, ignore_errors=True)


def is_folder(path: Path) -> bool:
    """Whether there is a folder at a path, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def is_data(path: Path) -> bool:
    """Whether a folder holds the tokens of a run, or nothing yet."""
    return is_folder(path) and ((path / TOKENS).exists() or not any(path.iterdir()))


def line_of(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def whole_or_nothing(made: Path) -> Iterator[None]:
    """What fails to be written is removed; OSError with the reason, whatever the library that wrote raises."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(made, ignore_errors=True)
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), error.filename or str(made)) from error
    except Exception as error:
        shutil.rmtree(made, ignore_errors=True)
        reason = " ".join(str(error).split())
        full = next((code for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) if os.strerror(code) in reason), None)
        if full is None and not any(sign in reason for sign in ("PytorchStreamWriter", "I/O error")):
            raise
        raise OSError(full or errno.EIO, os.strerror(full) if full else reason, str(made)) from error


def flush(path: Path) -> None:
    """To disk, so that what is renamed is there after a loss of power too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
