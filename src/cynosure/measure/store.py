"""A run on disk: a manifest and append-only Parquet shards, each whole or absent, each named by its own checksum."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second process out
    fcntl = None  # type: ignore[assignment]

from cynosure.measure.rows import Facts, Shard

MANIFEST, SUMMARY = "manifest.json", "summary.json"
SHARD = re.compile(r"tokens-(?P<number>\d{6,})-(?P<digest>[0-9a-f]{16})\.parquet")
PARTIAL = re.compile(r"(manifest|summary|tokens-\d+-[0-9a-f]+)\.(json|parquet)\.\d+\.partial")  # of `write_whole`
LOCK = ".lock"
META = b"cynosure"
PLAIN = ("nll", "entropy", "confidence", "brier", "nll_at_temperature", "top_logprobs")  # too varied for a dictionary
DESCRIBED = ("cynosure", "environment", "units")  # in the manifest, but no part of what a run is
PARTS = ("model", "setting", "cutting", "corpus")  # of every manifest

log = logging.getLogger("cynosure")


class Store:
    """The folder of a run. Reading checks each shard against its checksum; a damaged one counts as absent."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """A run that exists. Raises FileNotFoundError or ValueError when there is none, or none that can be read."""
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is no run: it has no {MANIFEST}; cynosure score ... --out makes one")
        try:
            manifest = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}; give another folder") from error
        if not (
            isinstance(manifest, dict)
            and all(isinstance(manifest.get(part), dict) for part in PARTS)
            and isinstance(manifest.get("units"), int | None)
        ):
            raise ValueError(f"{path} is of no run known here: give another folder")
        return cls(folder, manifest)

    @classmethod
    def begin(cls, folder: Path, manifest: dict[str, Any]) -> "Store":
        """A new run, or the one in the folder when it is the same; ValueError naming the difference when it is not.

        A run of which nothing has been scored yet, such as one that met a text it could not read, gives way to another.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in folder.iterdir())
        for leftover in filter(PARTIAL.fullmatch, names):
            (folder / leftover).unlink()
        if MANIFEST in names:
            store = cls.open(folder)
            different = difference(store.manifest, manifest)
            if not different:
                return store
            if store.shards:
                raise ValueError(
                    f"{folder} holds another run: {different}; give another --out, or score the same again"
                )
        elif other := next((name for name in names if not (name.startswith(".") or PARTIAL.fullmatch(name))), None):
            raise ValueError(f"{folder} is no run: it holds {other} and no {MANIFEST}; give another --out")
        store = cls(folder, manifest)
        store.put(MANIFEST, manifest)
        return store

    def put(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file of the run."""
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(self.folder / name, text.encode("utf-8", "backslashreplace"))  # JSON's escape of a lone surrogate

    @cached_property
    def shards(self) -> dict[int, Path]:
        """The shards by number, as their names say; their contents are checked when they are read.

        The folder is listed once, for it may hold very many; what this process has written since is added.
        """
        found = {}
        for path in sorted(self.folder.glob("tokens-*.parquet")):
            if match := SHARD.fullmatch(path.name):
                found[int(match["number"])] = path
        return found

    def whole_shards(self) -> dict[int, Path]:
        """The shards whose contents are what their checksums say; the others are removed."""
        for number, path in list(self.shards.items()):
            if digest(path.read_bytes()) != SHARD.fullmatch(path.name)["digest"]:  # type: ignore[index]
                log.info("%s is damaged and will be scored again", path)
                path.unlink()
                del self.shards[number]
        return self.shards

    def write(self, number: int, shard: Shard, seconds: float) -> None:
        """Keep a shard. Raises OSError, leaving nothing behind, where there is no room or no right to write."""
        meta = {"seconds": seconds, "documents": [fact._asdict() for fact in shard.facts]}
        table = shard.table.replace_schema_metadata({META: json.dumps(meta)})
        buffer = pa.BufferOutputStream()
        dictionary = [name for name in table.column_names if name not in PLAIN]
        parquet.write_table(table, buffer, compression="zstd", use_dictionary=dictionary)
        data = buffer.getvalue().to_pybytes()
        path = self.folder / f"tokens-{number:06d}-{digest(data)}.parquet"
        write_whole(path, data)
        self.shards[number] = path

    def read(self, number: int, columns: list[str] | None = None) -> tuple[Shard, float]:
        """A shard, whole or some columns of it, and the seconds it took. ValueError when it is damaged."""
        path = self.shards[number]
        data = path.read_bytes()
        if digest(data) != SHARD.fullmatch(path.name)["digest"]:  # type: ignore[index]
            raise ValueError(f"{path} is damaged: run the same cynosure score again, which scores that part anew")
        table = parquet.ParquetFile(pa.BufferReader(data)).read(columns=columns, use_threads=False)
        meta = json.loads(table.schema.metadata[META])
        return Shard(table, facts_of(meta)), float(meta["seconds"])

    def facts(self, number: int) -> tuple[Facts, ...]:
        """The documents in a shard, from its last bytes alone: nothing is checked against the checksum."""
        return facts_of(json.loads(parquet.read_schema(self.shards[number]).metadata[META]))

    def read_all(self, columns: list[str] | None = None) -> Iterator[tuple[Shard, float]]:
        """Every shard in order, whole or some columns. ValueError when the run is unfinished or a shard is missing."""
        n_units, found = self.manifest.get("units"), self.shards
        if n_units is None:
            raise ValueError(
                f"{self.folder} is unfinished, {len(found)} shards so far: run the same cynosure score again to go on"
            )
        missing = sorted(set(range(n_units)) - set(found))
        if missing:
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {n_units} shards, first number {missing[0]}: "
                "run the same cynosure score again, which scores that part anew"
            )
        yield from (self.read(number, columns) for number in range(n_units))

    def finish(self, n_units: int) -> None:
        """All there is to score has been scored."""
        if self.manifest.get("units") != n_units:
            self.manifest = self.manifest | {"units": n_units}
            self.put(MANIFEST, self.manifest)


def facts_of(meta: dict[str, Any]) -> tuple[Facts, ...]:
    """The documents that a shard's metadata tells of."""
    return tuple(Facts(**fact) for fact in meta["documents"])


def digest(data: bytes) -> str:
    """The checksum in a shard's name: the beginning of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """The folder, made if need be, for this process alone; the system lets go of it when the process dies.

    ValueError where another process has it. One that was made here and is empty in the end is removed.
    """
    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / LOCK
    with lock.open("w") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is {doing} {folder}: wait for it, or give another --out") from error
        try:
            yield
        finally:
            lock.unlink()
            if not existed and not any(folder.iterdir()):
                folder.rmdir()


def write_whole(path: Path, data: bytes) -> None:
    """Written beside, flushed to disk, then renamed: whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def difference(old: dict[str, Any], new: dict[str, Any], at: str = "") -> str | None:
    """The first thing in which two runs differ, in words; None when they are the same run."""
    for key in dict.fromkeys([*old, *new]):
        if not at and key in DESCRIBED:
            continue
        a, b, name = old.get(key), new.get(key), f"{at}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            if found := difference(a, b, f"{name}."):
                return found
        elif isinstance(a, list) and isinstance(b, list):
            if found := difference(numbered(a), numbered(b), f"{name}."):
                return found
        elif a != b:
            return f"its {name} is {shown(a)}, and now it is {shown(b)}"
    return None


def numbered(values: list[Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}


def shown(value: Any) -> str:
    """A value of a manifest in a sentence; digests by their beginnings.

    >>> shown("0123456789abcdef" * 4), shown(512), shown(None)
    ('01234567...', '512', 'nothing')
    """
    if value is None:
        return "nothing"
    text = str(value)
    return f"{text[:8]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text
