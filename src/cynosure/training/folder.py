"""The folder of a run: manifest, metrics line by line, and checkpoints, each whole or absent."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cynosure.system.files import flush, remove, write_whole
from cynosure.system.folders import check_is_folder, first_foreign, locked
from cynosure.training.data import TOKENS
from cynosure.training.integrity import (
    WAY_OUT,
    Damaged,
    check_beginning,
    check_complete,
    check_file,
    check_files,
    digest_of,
    digests_of,
    each_line,
    files_in,
    misfit,
    parse_lines,
    reading,
)
from cynosure.training.manifest import KEPT, read_manifest, sealed

MANIFEST = "train.json"
METRICS, VALIDATION, SAMPLES = "metrics.jsonl", "validation.jsonl", "samples.jsonl"
METRIC = {"value": float | None}
LINES: dict[str, dict[str, Any]] = {  # fields that a resumed run reads, and their types
    METRICS: {
        "step": int, "tokens": int, "loss": float, "smoothed": float, "seconds": float, "bits_per_byte": float | None,
    },
    VALIDATION: {"step": int, "tokens": int, "nats_per_token": METRIC, "bits_per_byte": METRIC},
    SAMPLES: {"step": int},
}  # fmt: skip
DATA, CHECKPOINTS, VALIDATIONS, SCORES, MODEL = "data", "checkpoints", "validation", "scores", "model"
PARTIAL = ".partial"  # holds folders until they are complete
LEFTOVER = re.compile(r"train\.json\.[0-9a-f]+\.partial")  # from an interrupted `write_whole`
STEP = re.compile(r"step-(\d{6,})")
DIGESTS = "digests.json"  # in a checkpoint: of its files, and of the lines before it
DIGESTED = {"files": dict[str, str], "lines": dict}
N_LAST = 2  # checkpoints to keep besides the best
# Files of a checkpoint that only training needs.
TRAINING_ONLY = (
    "optimizer", "optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "rng_state*", DIGESTS,
)  # fmt: skip


class RunFolder:
    """A training run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def exists(self) -> bool:
        return (self / MANIFEST).is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        """What the run is. Raises FileNotFoundError if it is missing, Damaged if it is damaged."""
        if not self.exists:
            if (self / CHECKPOINTS).exists():
                raise FileNotFoundError(f"{self / MANIFEST} is missing; {WAY_OUT}")
            raise FileNotFoundError(f"{self.path} holds no training run to resume: leave `resume` out to start one")
        return read_manifest(self / MANIFEST)

    def check_free(self) -> None:
        """Raise ValueError if the folder holds anything that a new run would mix with."""
        if self.exists:
            raise ValueError(f"{self.path} holds another run: give `resume=True` to resume it, or another `out`")
        self.check_own()

    def check_own(self) -> None:
        """Raise ValueError unless the path is free, an empty folder or the folder of a training run.

        The folder of a run may hold other files. Without a manifest, any file makes the folder foreign, hidden files
        included. The exceptions are `SYSTEM_FILES` and the remains of a run that never began.
        """
        check_is_folder(self.path)
        if self.exists:
            read_manifest(self / MANIFEST)  # raises if it is not the manifest of a run
        elif self.path.is_dir():
            begun = [path.name for path in self.begun]
            if other := first_foreign(self.path, lambda name: name in begun or bool(LEFTOVER.fullmatch(name))):
                raise ValueError(f"{self.path} holds {other} and no training run: give another `out`")

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Lock the folder for this process, as `cynosure.system.folders.locked` does."""
        with locked(self.path, "training in", self.check_own) as writable:
            yield writable

    @property
    def begun(self) -> list[Path]:
        """Everything that a run may have left before its manifest, and no folder of another program."""
        partial, data = self / PARTIAL, self / DATA
        inside = is_folder(partial) and all(path.name == DATA and is_data(path) for path in partial.iterdir())
        return [*([partial] if inside else []), *([data] if is_data(data) else [])]

    def clear_begun(self) -> None:
        """Remove the remains of a run that never began."""
        for path in self.begun:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def dropped_unless_prepared(self) -> Iterator[None]:
        """Remove the manifest and data of a new run if it fails before its first step."""
        try:
            yield
        except BaseException:
            remove(self / MANIFEST)
            self.clear_begun()
            raise

    def put(self, name: str, values: dict[str, Any]) -> None:
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        write_whole(self / name, text.encode("utf-8", "backslashreplace"))  # JSON's escape of a lone surrogate

    def put_manifest(self, values: dict[str, Any]) -> None:
        self.put(MANIFEST, sealed(values))

    def append(self, name: str, values: dict[str, Any]) -> None:
        """Append a line. If the disk fills up meanwhile, only this line is lost."""
        try:
            with (self / name).open("a", encoding="utf-8") as file:
                file.write(line_of(values))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self / name)) from error

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the complete lines of a file, without one cut off at the end. Raises Damaged for other bad lines."""
        try:
            data = (self / name).read_bytes()
        except FileNotFoundError:
            return []
        return parse_lines(self / name, data, LINES[name])

    def lines_up_to(self, step: int, name: str) -> list[dict[str, Any]]:
        """Return the lines of a file up to a step. Raises Damaged if a bad line may be among them."""
        lines: list[dict[str, Any]] = []
        try:
            for line in each_line(self / name, (self / name).read_bytes(), LINES[name]):
                lines.append(line)
        except FileNotFoundError:
            return []
        except Damaged:
            if not lines or lines[-1]["step"] < step:
                raise
        return [line for line in lines if line["step"] <= step]

    @property
    def kept(self) -> dict[int, str | None]:
        """The checkpoints that the run has kept, by step: the SHA-256 of each one's digests.

        It is None for a checkpoint of an earlier version, which kept no digests.
        """
        manifest = self.manifest if self.exists else {}
        if KEPT in manifest:
            return {int(step): digest for step, digest in manifest[KEPT].items()}
        matches = [STEP.fullmatch(path.name) for path in (self / CHECKPOINTS).glob("step-*")]
        return dict.fromkeys(sorted(int(match[1]) for match in matches if match))

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The folders of the kept checkpoints that exist, by step."""
        return {step: path for step in sorted(self.kept) if (path := self.checkpoint(step)).is_dir()}

    def checkpoint(self, step: int) -> Path:
        """Return the path for the checkpoint of a step."""
        return self / CHECKPOINTS / f"step-{step:06d}"

    def best_first(self, steps: Collection[int]) -> list[int]:
        """Return those of the steps that were validated, by loss; of equal losses the earliest comes first."""
        rows = [(row["nats_per_token"]["value"], row["step"]) for row in self.lines(VALIDATION)]
        return [step for _, step in sorted(row for row in rows if row[0] is not None and row[1] in steps)]

    def check(self, step: int) -> None:
        """Raise Damaged if a checkpoint, or any line before it, is damaged."""
        digests = self.check_checkpoint(step)
        for name, known in digests.get("lines", {}).items():
            check_beginning(self / name, known["bytes"], known["sha256"])
        for name in LINES if not digests else ():
            self.lines_up_to(step, name)

    def check_checkpoint(self, step: int) -> dict[str, Any]:
        """Return a checkpoint's digests. Raises Damaged if it differs from them or, without any, lacks a part."""
        place = self.checkpoint(step)
        if not place.is_dir():
            raise Damaged(f"{place} is {'not a folder' if place.exists() else 'missing'}")
        if digests := self.digests(step):
            check_files(place, digests["files"], beside=[DIGESTS])
        else:
            check_complete(place)
        return digests

    def digests(self, step: int) -> dict[str, Any]:
        """Return the digests of a checkpoint and of the lines before it; {} if an earlier version wrote it."""
        known, path = self.kept[step], self.checkpoint(step) / DIGESTS
        if known is None:
            return {}
        check_file(path, known)
        with reading(path):
            digests: dict[str, Any] = json.loads(path.read_bytes())
        line = {"bytes": int, "sha256": str}
        wrong = misfit(digests, DIGESTED) or misfit(digests["lines"], dict.fromkeys(digests["lines"], line))
        if wrong or not digests["lines"].keys() <= LINES.keys():
            raise Damaged(f"{path} is damaged: {wrong or 'it names unknown files'}")
        return digests

    def rewind(self, step: int) -> None:
        """Remove what came after a checkpoint: lines, partial folders, and later checkpoints in the manifest."""
        remove(self / PARTIAL)
        known = self.digests(step).get("lines") if step in self.kept else None
        for name in filter(lambda name: (self / name).exists(), LINES):
            data = (self / name).read_bytes()
            if step == 0:
                left = b""
            elif known is None:
                left = "".join(map(line_of, self.lines_up_to(step, name))).encode()
            else:
                left = data[: known[name]["bytes"]] if name in known else b""
            if left != data:
                write_whole(self / name, left)
        self.remember({kept: digest for kept, digest in self.kept.items() if kept <= step})

    def remember(self, kept: dict[int, str | None]) -> None:
        """Record in the manifest which checkpoints exist."""
        if self.exists and kept != self.kept:
            self.put_manifest(self.manifest | {KEPT: {str(step): kept[step] for step in sorted(kept)}})

    def keep(self, partial: Path, step: int) -> None:
        """Move a complete checkpoint into place, and remove those that are neither the best nor among the last.

        A damaged checkpoint stays in place until its step is saved again.
        """
        lines = {name: self / name for name in LINES if (self / name).exists()}
        written = {name: {"bytes": path.stat().st_size, "sha256": digest_of(path)} for name, path in lines.items()}
        self.write_digests(partial, written)
        flush_files(partial)
        place = self.checkpoint(step)
        place.parent.mkdir(exist_ok=True)
        remove(place)
        digest = digest_of(partial / DIGESTS)
        partial.rename(place)
        flush(place.parent)
        kept = self.kept | {step: digest}
        stay = {*sorted(kept)[-N_LAST:], *self.best_first(kept)[:1]}
        self.remember({one: digest for one, digest in kept.items() if one in stay})
        for old in kept.keys() - stay:
            remove(self.checkpoint(old))

    def write_digests(self, checkpoint: Path, lines: dict[str, Any]) -> None:
        """Write into a checkpoint the digests of its files and of the lines before it."""
        text = json.dumps({"files": digests_of(checkpoint), "lines": lines}, indent=1) + "\n"
        write_whole(checkpoint / DIGESTS, text.encode())

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Yield an empty folder to fill, which replaces the folder of this name when it is complete."""
        partial = self / PARTIAL / name
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_nothing(partial):
            yield partial
            flush_files(partial)
        shutil.rmtree(self / name, ignore_errors=True)
        partial.rename(self / name)
        shutil.rmtree(self / PARTIAL, ignore_errors=True)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


def is_data(path: Path) -> bool:
    """Whether a folder holds the tokens of a run, or nothing yet."""
    return is_folder(path) and ((path / TOKENS).exists() or not any(path.iterdir()))


def first_sound(folder: RunFolder, steps: Iterable[int], check: Callable[[int], object]) -> tuple[int, list[str]]:
    """Return the first of these checkpoints that is intact, and what is wrong with those before it.

    Raises Damaged if none is intact.
    """
    wrong: list[str] = []
    for step in steps:
        try:
            check(step)
        except Damaged as error:
            wrong.append(error.what)
        else:
            return step, wrong
    raise Damaged(f"no checkpoint in {folder / CHECKPOINTS} is intact: {'; '.join(wrong)}")


def line_of(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def whole_or_nothing(partial: Path) -> Iterator[None]:
    """Remove what could not be written completely; raise OSError with the reason, whatever the library raised."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), error.filename or str(partial)) from error
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = " ".join(str(error).split())
        full = next((code for code in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) if os.strerror(code) in reason), None)
        if full is None and not any(sign in reason for sign in ("PytorchStreamWriter", "I/O error")):
            raise
        raise OSError(full or errno.EIO, os.strerror(full) if full else reason, str(partial)) from error


def flush_files(folder: Path) -> None:
    """Flush every file in a folder to disk, before the folder is renamed."""
    for path in files_in(folder):
        flush(path)
