"""What is in the cache is verified before it is believed, and made again where it is damaged."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cynosure.models import cache as sealing
from cynosure.models import gguf as converter
from cynosure.models import load
from cynosure.models.cache import SEAL, is_whole, seal, stamp_file
from cynosure.models.gguf import NOTES, GgufFile, dequantised, read_notes
from tests.models.test_gguf import cache as cache
from tests.models.test_gguf import file as file
from tests.models.test_gguf import model as model

DAY = 24 * 3600


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / "sealed"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(name.encode() * 1000)
    seal(folder)
    return folder


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose digests are computed from now on."""
    found: list[Path] = []
    own = sealing.sha256

    def sha256(*paths: Path) -> str:
        found.extend(paths)
        return own(*paths)

    monkeypatch.setattr(sealing, "sha256", sha256)
    return found


def flip(path: Path) -> None:
    """Change a byte and nothing else: neither the size nor the time of modification."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=times)


def test_files_are_hashed_once_a_day(sealed: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_whole(sealed)
    assert [path.name for path in hashed] == ["a", "b"]
    assert is_whole(sealed)
    assert len(hashed) == 2
    now = time.time()
    for moved in (DAY + 1, -60.0):  # a day later; then a clock that was set back
        monkeypatch.setattr(time, "time", lambda moved=moved: now + moved)
        hashed.clear()
        assert is_whole(sealed)
        assert len(hashed) == 2
        assert is_whole(sealed)
        assert len(hashed) == 2


def test_a_file_that_was_touched_is_hashed_at_once(sealed: Path, hashed: list[Path]) -> None:
    assert is_whole(sealed)
    hashed.clear()
    os.utime(sealed / "b")
    assert is_whole(sealed)
    assert len(hashed) == 2


def test_a_rotten_bit_is_found_after_a_day(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_whole(sealed)
    flip(sealed / "a")
    assert is_whole(sealed)  # for neither size nor time tell
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + DAY + 1)
    assert not is_whole(sealed)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "changed": lambda folder: (folder / "a").write_bytes(b"x" * 1000),
    "cut": lambda folder: (folder / "a").write_bytes(b"a"),
    "gone": lambda folder: (folder / "a").unlink(),
    "more": lambda folder: (folder / "c").touch(),
    "no seal": lambda folder: (folder / SEAL).unlink(),
    "a seal of nothing": lambda folder: (folder / SEAL).write_text("null"),
    "a seal cut short": lambda folder: (folder / SEAL).write_text('{"a'),
    "nothing": shutil.rmtree,
    "a file": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "a folder in it": lambda folder: ((folder / "a").unlink(), (folder / "a").mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("verified", [True, False])
def test_damage_is_seen(sealed: Path, damage: Callable[[Path], Any], verified: bool) -> None:
    if verified:
        assert is_whole(sealed)
    damage(sealed)
    assert not is_whole(sealed)


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"at": "x"}', b'{"at": NaN, "files": {}}', b"\xff"])
def test_a_stamp_that_cannot_be_read_counts_for_nothing(sealed: Path, hashed: list[Path], data: bytes) -> None:
    stamp_file(sealed).write_bytes(data)
    assert is_whole(sealed)
    assert len(hashed) == 2


def test_a_cache_that_is_only_read_is_verified_each_time(sealed: Path, hashed: list[Path]) -> None:
    stamp_file(sealed).mkdir()  # so that nothing can be written there
    assert is_whole(sealed)
    assert is_whole(sealed)
    assert len(hashed) == 4


def test_a_damaged_conversion_is_made_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = GgufFile(file.name, (file,))
    folder = dequantised(source)
    before = (folder / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "tokenizer.json", NOTES):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-8] + bytes(8))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert dequantised(source) == folder
        told = [message for message in caplog.messages if "is damaged" in message]
        assert told == [f"the cached conversion of {file.name} is damaged: {folder}. Converting it again"]
        assert (folder / "model.safetensors").read_bytes() == before
    assert load(str(file)).name.startswith("Tiny-Instruct")


def test_conversions_of_other_versions_are_left_alone(file: Path, cache: Path) -> None:
    key = GgufFile("x", (file,)).sha256()
    for version in (1, 99):
        other = cache / "gguf" / f"{key}-v{version}"
        other.mkdir(parents=True)
        (other / "config.json").write_text("{}")
    assert read_notes(dequantised(GgufFile(file.name, (file,)))) is not None
    assert all((cache / "gguf" / f"{key}-v{version}" / "config.json").read_text() == "{}" for version in (1, 99))


def test_everything_is_on_disk_before_it_has_its_name(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    own = Path.rename

    def rename(path: Path, target: Path) -> Path:
        assert {path.name for path in flushed} >= {"model.safetensors", "config.json", NOTES, SEAL, path.name}
        return own(path, target)

    monkeypatch.setattr(sealing, "flush", flushed.append)
    monkeypatch.setattr(converter, "flush", flushed.append)
    monkeypatch.setattr(Path, "rename", rename)
    dequantised(GgufFile(file.name, (file,)))
    assert flushed[-1] == cache / "gguf"


def test_a_cache_that_cannot_be_used_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").touch()
    for place in (tmp_path / "taken", tmp_path / "taken" / "below", Path("/dev/null/cache")):
        monkeypatch.setenv("CYNOSURE_CACHE", str(place))
        with pytest.raises(OSError, match=r"cannot use the cache, .*/gguf: .*; set CYNOSURE_CACHE to another folder"):
            load(str(file))


def test_notes_that_are_damaged_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "noted"
    shutil.copytree(tiny_folder, folder)
    for data in ("{", "[]", '{"name": 5}', json.dumps({"name": "x"}), "[" * 100_000):
        (folder / NOTES).write_text(data)
        with pytest.raises(ValueError, match=r"noted/cynosure\.json is damaged: remove it to load the folder"):
            load(str(folder))
