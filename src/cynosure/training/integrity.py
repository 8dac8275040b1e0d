"""Check that the files of a run are undamaged: SHA-256 digests, and types of values in JSON."""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import torch
from safetensors import safe_open

from cynosure.system.files import sha256

# What Trainer needs to resume exactly: it silently replaces a missing part by a new one.
PARTS = ("*model*.safetensors", "optimizer*", "scheduler.pt", "rng_state*.pth", "trainer_state.json")
WAY_OUT = "restore it from a copy, or train again with another `out`"


def way_out_of(checkpoint: Path) -> str:
    """Return what to do about a checkpoint that matches its digests and still cannot be read."""
    return f"remove {checkpoint} to resume from the checkpoint before it"


class Damaged(ValueError):
    """A file of a run is damaged: `what` names the file and the damage; the message adds a way out."""

    def __init__(self, what: str, way_out: str = WAY_OUT) -> None:
        super().__init__(f"{what}; {way_out}")
        self.what = what


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file. Raises Damaged if it is missing or cannot be read."""
    if not path.is_file():
        raise Damaged(f"{path} is {'not a file' if path.exists() else 'missing'}")
    try:
        return sha256(path)
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its relative path."""
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in files_in(folder)}


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def check_file(path: Path, digest: str) -> None:
    """Raise Damaged if a file does not have this SHA-256."""
    if digest_of(path) != digest:
        raise Damaged(f"{path} does not match its SHA-256")


def check_files(folder: Path, digests: dict[str, str], beside: Iterable[str] = ()) -> None:
    """Raise Damaged unless a folder holds these files, unchanged, and no others except hidden ones and `beside`."""
    for name, digest in digests.items():
        check_file(folder / name, digest)
    for path in files_in(folder):
        name = path.relative_to(folder).as_posix()
        if name not in digests and name not in beside and not path.name.startswith("."):
            raise Damaged(f"{path} was not written by this run")


def check_complete(checkpoint: Path) -> None:
    """Raise Damaged unless a checkpoint without digests has all its parts, and each can be read."""
    for part in PARTS:
        if not any(checkpoint.glob(part)):
            raise Damaged(f"{checkpoint / part} is missing")
    check_ranks(checkpoint)
    for path in files_in(checkpoint):
        with reading(path):
            if path.suffix in (".pt", ".pth"):
                with zipfile.ZipFile(path) as archive:
                    if (wrong := archive.testzip()) is not None:
                        raise ValueError(f"{wrong} in it does not match its CRC")
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
    for index in checkpoint.glob("*.safetensors.index.json"):
        for name in set(json.loads(index.read_bytes())["weight_map"].values()):
            if not (checkpoint / name).is_file():
                raise Damaged(f"{checkpoint / name} is missing")


def check_ranks(checkpoint: Path) -> None:
    """Raise Damaged if the random state of one of several processes is missing, unless it is the last.

    A single process writes no rank into the file name, so numbered files mean at least two processes.
    """
    ranks = {int(path.stem.rpartition("_")[2]) for path in checkpoint.glob("rng_state_[0-9]*.pth")}
    for rank in range(max(2, 1 + max(ranks)) if ranks else 0):
        if rank not in ranks:
            raise Damaged(f"{checkpoint / f'rng_state_{rank}.pth'} is missing")


def check_beginning(path: Path, n_bytes: int, digest: str) -> None:
    """Raise Damaged unless a file of lines begins with the bytes of this digest; it names the line if it can."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data[:n_bytes]).hexdigest() == digest:
        return
    parse_lines(path, data[:n_bytes])
    if len(data) < n_bytes:
        raise Damaged(f"{path} is cut off after {len(data):,} of {n_bytes:,} bytes")
    raise Damaged(f"{path} does not match its SHA-256 in its first {n_bytes:,} bytes")


def parse_lines(path: Path, data: bytes, kinds: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the complete lines of a file, one JSON object each; one cut off at the end is left out.

    Raises Damaged, with the line number, if a line is not an object or lacks a value of these types.
    """
    return list(each_line(path, data, kinds))


def each_line(path: Path, data: bytes, kinds: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the lines that `parse_lines` returns, up to the first damaged one."""
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"{path}, line {number}, is not JSON: {reason_of(error)}") from error
        if wrong := misfit(values, kinds or {}):
            raise Damaged(f"{path}, line {number}, is damaged: {wrong}")
        yield values


def misfit(values: Any, kinds: dict[str, Any]) -> str | None:
    """Describe the first value of a JSON object that is missing or of the wrong type; None if all fit.

    >>> misfit({"step": 3, "loss": "low"}, {"step": int, "loss": float | None})
    "loss is 'low', not float | None"
    >>> misfit({"step": 3}, {"step": int, "loss": float})
    'loss is missing'
    """
    if not isinstance(values, dict):
        return f"{shortened(values)} is not an object"
    for name, kind in kinds.items():
        if name not in values:
            return f"{name} is missing"
        if isinstance(kind, dict):
            if wrong := misfit(values[name], kind):
                return f"{name}: {wrong}"
        elif not fits(values[name], kind):
            return f"{name} is {shortened(values[name])}, not {getattr(kind, '__name__', kind)}"
    return None


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value has a type, given as a type hint. An int is also a float; a bool is not an int."""
    if isinstance(kind, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if kind is Any:
        return True
    if get_origin(kind) in (tuple, list):
        return isinstance(value, list) and all(fits(one, get_args(kind)[0]) for one in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(fits(one, get_args(kind)[1]) for one in value.values())
    return type(value) in ((int, float) if kind is float else (kind,))


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@contextmanager
def reading(path: Path, way_out: str = WAY_OUT) -> Iterator[None]:
    """Turn anything that a library raises for an unreadable file into Damaged, which names the file."""
    try:
        yield
    except (Damaged, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise Damaged(f"{path} cannot be read: {reason_of(error)}", way_out) from error


def reason_of(error: BaseException) -> str:
    """Return the first sentence of an error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    line = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".: ")
    return line or type(error).__name__
