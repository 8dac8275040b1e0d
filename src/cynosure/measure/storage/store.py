"""Keep a run on disk: a manifest and append-only Parquet shards, each complete or absent, and named by its checksum."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from cynosure.measure.storage.manifest import MANIFEST, difference, identity, read_manifest, sealed
from cynosure.measure.storage.rows import DocumentFacts, Shard
from cynosure.measure.storage.shards import Label, decode, decode_label, digest, encode, parse
from cynosure.measure.storage.texts import TOKEN_TEXTS, decode_texts, encode_texts
from cynosure.system.files import write_whole
from cynosure.system.folders import LOCK, SYSTEM_FILES, check_is_folder, first_foreign

SUMMARY = "summary.json"
SHARD = re.compile(r"tokens-(?P<number>[0-9]{6,})-(?P<digest>[0-9a-f]{16})\.parquet")
PARTIAL = re.compile(
    r"(manifest|summary|token_texts|tokens-\d+-[0-9a-f]+)\.(json|parquet)\.[0-9a-f]+\.partial"
)  # by `write_whole`
REPORT = re.compile(r"(?s)report(-vs-.*)?\.html(\.[0-9a-f]+\.partial)?")  # made from the run by `cynosure report`
AGAIN = "score the same again, which redoes that part"

log = logging.getLogger("cynosure")


class ShardFile(NamedTuple):
    """A file with the name of a shard."""

    path: Path
    digest: str  # in its name


class Store:
    """The folder of a run. Reading checks each shard against its checksum; a damaged shard counts as absent.

    The manifest of a finished run lists the checksums of its shards and contains its own. Each shard names its run and
    its number. So no metric is computed from a file that was changed, renamed, or taken from another run.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open an existing run. Raise FileNotFoundError if there is none, ValueError if it cannot be read."""
        return cls(folder, read_manifest(folder / MANIFEST))

    @classmethod
    def begin(cls, folder: Path, manifest: dict[str, Any]) -> "Store":
        """Start a run, or continue the same run in the folder. Raise ValueError, with the difference, if it is another.

        The folder must be locked and checked by `check_own`. A run that has no shard yet, for example because its first
        text could not be read, is replaced.
        """
        for leftover in folder.iterdir():
            if PARTIAL.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink()
        if (folder / MANIFEST).exists():
            store = cls.open(folder)
            different = difference(store.manifest, manifest)
            if not different:
                return store
            if store.files:
                raise other_run(folder, different)
        store = cls(folder, manifest)
        store.put(MANIFEST, sealed(manifest))
        return store

    @property
    def environment(self) -> dict[str, Any]:
        """The environment in which the run was started; empty if the manifest does not have it."""
        environment = self.manifest.get("environment")
        return environment if isinstance(environment, dict) else {}

    @cached_property
    def identity(self) -> str:
        return identity(self.manifest)

    def put(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file of the run, unless it already has this content."""
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        data = text.encode("utf-8", "backslashreplace")  # as JSON escapes a lone surrogate
        path = self.folder / name
        if not (path.is_file() and path.read_bytes() == data):
            write_whole(path, data)

    @cached_property
    def files(self) -> dict[int, list[ShardFile]]:
        """The shards by the number in their names. If a number has several, the one in the manifest comes first.

        The folder is listed only once, because it may hold very many. `write` adds what it writes.
        """
        shards: dict[int, list[ShardFile]] = {}
        for path in sorted(self.folder.glob("tokens-*.parquet")):
            if (match := SHARD.fullmatch(path.name)) and path.is_file():
                shards.setdefault(int(match["number"]), []).append(ShardFile(path, match["digest"]))
        for number, files in shards.items():
            files.sort(key=lambda file: file.digest != self.listed(number))
        return shards

    def listed(self, number: int) -> str | None:
        """Return the checksum of a shard in the manifest of a finished run. Earlier versions have none."""
        shards = self.manifest.get("shards") or []
        return shards[number] if number < len(shards) else None

    def whole_shards(self) -> set[int]:
        """Return the numbers of this run's intact shards, and remove damaged files.

        Raises ValueError if an intact shard belongs to another run, or has another number than its name says.
        """
        self.check_numbers()
        whole = {}
        for number, files in self.files.items():
            if kept := self.whole_ones(number, files):
                whole[number] = kept[:1]
            for path, _ in (file for file in files if file not in kept):
                what = f"removed, because {kept[0].path.name} is intact" if kept else "will be scored again"
                log.info("%s is damaged and %s", path, what)
                path.unlink()
        self.files = whole
        return set(whole)

    def whole_ones(self, number: int, files: list[ShardFile]) -> list[ShardFile]:
        """Return the intact ones among the files of one number. Raise ValueError if one belongs to another run."""
        whole: list[ShardFile] = []
        for file in files:
            data = file.path.read_bytes()
            if digest(data) != file.digest:
                continue
            if file.digest != self.listed(number):
                label = decode_label_of(file.path, data)
                self.check_label(number, file, label)
                if whole and label.run is None:
                    raise self.twice(number)
            whole.append(file)
        return whole

    def twice(self, number: int) -> ValueError:
        names = " and ".join(file.path.name for file in self.files[number])
        return ValueError(f"{self.folder} has shard {number} twice, {names}: move one out of the folder")

    def check_numbers(self) -> None:
        """Raise ValueError for a shard beyond the end of a finished run."""
        n_units = self.manifest.get("units")
        if n_units is not None and (beyond := [number for number in self.files if number >= n_units]):
            path = self.files[min(beyond)][0].path
            raise ValueError(f"{path} is not one of the run's {n_units} shards: move it out of the folder")

    def check_label(self, number: int, file: ShardFile, label: Label) -> None:
        """Raise ValueError if a shard does not fit its name and its folder.

        A shard of an earlier version, which has no run in its label, is accepted unless the manifest lists another.
        """
        path, old = file.path, label.run is None and self.listed(number) in (None, file.digest)
        if label.run != self.identity and not old:
            raise ValueError(f"{path} belongs to another run than its folder: move it out of the folder, and {AGAIN}")
        if label.number not in (number, None):
            raise ValueError(f"{path} is shard {label.number}, not {number}: rename it back, or {AGAIN}")

    def write(self, number: int, shard: Shard, seconds: float) -> None:
        """Write a shard. Raise OSError, and leave nothing behind, if there is no space or no permission."""
        data = encode(shard, Label(self.identity, number, max(0.0, seconds)))
        file = ShardFile(self.folder / f"tokens-{number:06d}-{digest(data)}.parquet", digest(data))
        write_whole(file.path, data)
        self.files[number] = [file]

    def read(self, number: int, columns: list[str] | None = None) -> tuple[Shard, float]:
        """Read a shard, or some of its columns, and the seconds it took. Raise ValueError if it is damaged."""
        file = path, named = self.files[number][0]
        data = path.read_bytes()
        if digest(data) != named:
            raise ValueError(f"{path} is damaged: {AGAIN}")
        if self.listed(number) not in (named, None):
            raise ValueError(f"{path} is not the shard that the run was finished with: {AGAIN}")
        try:
            shard, label = decode(data, columns)
        except ValueError as error:
            raise not_ours(path, error) from error
        self.check_label(number, file, label)
        return shard, float(label.seconds)

    def columns(self, number: int, names: list[str]) -> pa.Table:
        """Read some columns of a shard, without checking the checksum. Columns that it lacks are left out."""
        path = self.files[number][0].path
        try:
            with parquet.ParquetFile(path) as file:
                return file.read(columns=names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged: {AGAIN}") from error

    def token_texts(self) -> dict[int, str]:
        """Return the texts of the likeliest tokens by id; empty if the run has none or their file is damaged."""
        try:
            return decode_texts((self.folder / TOKEN_TEXTS).read_bytes(), self.identity)
        except OSError:
            return {}

    def put_token_texts(self, texts: dict[int, str]) -> None:
        write_whole(self.folder / TOKEN_TEXTS, encode_texts(texts, self.identity))

    def facts(self, number: int) -> tuple[DocumentFacts, ...]:
        """Read the documents of a shard from the end of its file, without checking the checksum."""
        return parse(parquet.read_schema(self.files[number][0].path))[0]

    def n_rows(self, number: int) -> int:
        """Read the number of rows of a shard from the end of its file, without checking the checksum."""
        return int(parquet.read_metadata(self.files[number][0].path).num_rows)

    @property
    def first_missing(self) -> int | None:
        """The number of the first shard that a finished run lacks."""
        number = next(number for number in count() if number not in self.files)
        return number if number < self.manifest["units"] else None

    def read_all(self, columns: list[str] | None = None) -> Iterator[tuple[Shard, float]]:
        """Read all shards in order, or some columns. Raise ValueError if the run is unfinished or lacks a shard."""
        n_units = self.manifest.get("units")
        if n_units is None:
            raise ValueError(
                f"{self.folder} is unfinished, {len(self.files)} shards so far: score the same again to continue"
            )
        self.check_numbers()
        if (first := self.first_missing) is not None:
            n_missing = n_units - len(self.files)
            raise ValueError(f"{self.folder} lacks {n_missing} of {n_units} shards, first number {first}: {AGAIN}")
        for number in range(n_units):
            if len(self.files[number]) > 1 and self.listed(number) is None:
                raise self.twice(number)
        yield from (self.read(number, columns) for number in range(n_units))

    @property
    def found(self) -> tuple[str, ...]:
        """Notes made while the run was scored."""
        return tuple(self.manifest.get("found", ()))

    def finish(self, n_units: int, found: Iterable[str] = ()) -> None:
        """Mark the run as finished: record its shards, and the notes made while it was scored."""
        self.manifest = self.manifest | {"units": n_units}
        if notes := list(dict.fromkeys((*self.found, *found))):
            self.manifest |= {"found": notes}
        if (first := self.first_missing) is not None:
            raise ValueError(f"shard {first} has vanished from {self.folder}: {AGAIN}")
        shards = [self.files[number][0].digest for number in range(n_units)]
        self.manifest = sealed(self.manifest | {"shards": shards})
        self.put(MANIFEST, self.manifest)


def decode_label_of(path: Path, data: bytes) -> Label:
    """Read the label of a shard in a file. Raise ValueError, with the file's name, if it is not a shard."""
    try:
        return decode_label(data)
    except ValueError as error:
        raise not_ours(path, error) from error


def not_ours(path: Path, error: ValueError) -> ValueError:
    return ValueError(f"{path} is not a shard of cynosure ({error}): move it out of the folder, and {AGAIN}")


def other_run(folder: Path, different: str) -> ValueError:
    return ValueError(f"{folder} holds another run: {different}; give another `out`, or score the same again")


def is_of_run(name: str) -> bool:
    """Whether a file in the folder of a run has the name of a file of the run."""
    return name in (MANIFEST, SUMMARY, TOKEN_TEXTS, LOCK) or bool(SHARD.fullmatch(name) or PARTIAL.fullmatch(name))


def check_own(folder: Path) -> None:
    """Check that a path is free, an empty folder, or the folder of a run.

    A folder with a manifest may contain any other files, which are left alone. Without a manifest, any file makes the
    folder foreign, even a hidden one, except `SYSTEM_FILES` and the leftovers of a first write that was killed.

    Args:
        folder: the path.

    Raises:
        ValueError: the path is something else.
    """
    check_is_folder(folder)
    if (folder / MANIFEST).is_file():
        read_manifest(folder / MANIFEST)
    elif folder.is_dir() and (other := first_foreign(folder, lambda name: bool(PARTIAL.fullmatch(name)))):
        raise ValueError(f"{folder} is not a run: it holds {other} and no {MANIFEST}; give another `out`")


def remove_run(folder: Path) -> None:
    """Remove the files of a run. Raise ValueError, before removing any, if the folder holds other files."""
    check_is_folder(folder)
    if not folder.is_dir():
        return
    if other := first_foreign(folder, lambda name: is_of_run(name) or bool(REPORT.fullmatch(name))):
        raise ValueError(f"{folder / other} is not part of the run: move it out of that folder")
    for path in list(folder.iterdir()):
        if not SYSTEM_FILES.fullmatch(path.name):
            path.unlink()
