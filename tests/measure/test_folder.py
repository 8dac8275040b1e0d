"""Folders that users name: another's is never touched, one process has ours, and a finished run needs no writing."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cynosure.measure import Corpus, open_run, score, score_all
from cynosure.measure.storage.store import check_own, remove_run
from cynosure.models import LanguageModel, split
from cynosure.system import files, folders
from cynosure.system.files import write_out, write_whole
from cynosure.system.folders import LOCK, locked
from tests.cli.test_bad_input import Run, refused
from tests.cli.test_cli import run as run
from tests.measure.test_store import DOCUMENTS, OPTIONS, figures, interrupted
from tests.tiny import tiny

FEW = DOCUMENTS[:4]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the cat sat on the mat.\n" * 4)
    return file


def state(folder: Path) -> list[Any]:
    """All that is in a folder, with contents, modes and times."""
    return [
        (str(path), path.lstat().st_mode, path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in [folder, *sorted(folder.rglob("*"))]
    ]


FOREIGN = {
    "a file": ("thesis.tex", "mine"),
    "a hidden file": (".bashrc", "mine"),
    "a lock of another program": (".other.lock", "4711"),
    "a manifest of another program": ("manifest.json", '{"name": "app", "icons": []}'),
    "half a file of another program": ("thesis.tex.4711.partial", "mine"),
    "a folder that is named as data": ("data/a.txt", "mine"),
    "a hidden folder that is named as ours": (".partial/a.txt", "mine"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_folder_of_something_else_is_not_touched(run: Run, tiny_folder: Path, tmp_path: Path, kind: str) -> None:
    name, content = FOREIGN[kind]
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text(content)
    before = state(out)
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat.\n" * 4)
    refused(run("score", tiny_folder, text, "--out", out), str(out), "give another")
    refused(run("score", tiny_folder, text, "--out", out, "--protocol", "all"), str(out), "give another --out")
    refused(run("train", text, "--out", out, "--preset", "tiny", "--quiet"), str(out), "give another --out")
    assert state(out) == before


def test_what_systems_put_into_a_folder_makes_it_nobodys(model: LanguageModel, tmp_path: Path) -> None:
    for name in (".DS_Store", ".gitignore"):
        (tmp_path / name).write_text("mine")
    assert score(model, FEW, out=tmp_path, **OPTIONS).documents == len(FEW)
    assert {(tmp_path / name).read_text() for name in (".DS_Store", ".gitignore")} == {"mine"}
    (tmp_path / "notes.txt").write_text("of a run that is there")
    assert score(model, FEW, out=tmp_path, **OPTIONS).documents == len(FEW)


def test_runs_of_all_protocols_are_in_folders_of_their_own(run: Run, tiny_folder: Path, text: Path) -> None:
    out = text.parent / "runs"
    command = ["score", tiny_folder, text, "--out", out, "--protocol", "all", "--window", 16, "--format", "json"]
    first = run(*command)
    assert (first.status, run(*command).out) == (0, first.out)
    (out / "sliding" / "manifest.json").write_text("{")
    before = state(out)
    refused(run(*command), f"{out}/sliding/manifest.json is not JSON", "restore it from a copy")
    refused(run("score", tiny_folder, text, "--out", out), f"{out} is not a run: it holds blocks")
    with pytest.raises(ValueError, match="holds runs, which is not a run of a protocol: give another `out`"):
        score_all(split(tiny()), Corpus(FEW, {}), window=16, out=text.parent)
    assert state(out) == before


@pytest.mark.parametrize("kind", ["a link", "a file that is not empty", "a folder", "a pipe"])
def test_a_lock_that_is_not_ours_is_left_alone(model: LanguageModel, tmp_path: Path, kind: str) -> None:
    out, target = tmp_path / "out", tmp_path / "target"
    out.mkdir()
    target.write_text("mine")
    make: Any = {
        "a link": lambda path: path.symlink_to(target),
        "a file that is not empty": lambda path: path.write_text("mine"),
        "a folder": Path.mkdir,
        "a pipe": os.mkfifo,
    }[kind]
    make(out / LOCK)
    before = state(tmp_path)
    with pytest.raises(ValueError, match=r"\.cynosure\.lock is not a lock file of cynosure: move it away"):
        score(model, FEW, out=out, **OPTIONS)
    assert state(tmp_path) == before


HOLD = """
import os, runpy, sys, time
from pathlib import Path
locked = runpy.run_path(sys.argv[1])["locked"]  # by itself, without torch
folder, inside, held = Path(sys.argv[2]), Path(sys.argv[3]), 0
while held < 300:
    try:
        with locked(folder, "at work in", lambda: None):
            held += 1
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # FileExistsError where two are in it
            time.sleep(0.0005)
            inside.unlink()
    except ValueError:
        time.sleep(0.0001)
"""


def test_no_two_processes_hold_a_folder(tmp_path: Path) -> None:
    """Though each removes the lock when it is done, and the folder that it made: the other may have it open."""
    folder, inside = tmp_path / "run", tmp_path / "inside"
    command = [sys.executable, "-c", HOLD, folders.__file__, str(folder), str(inside)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == ["", ""]
    assert not list(folder.parent.rglob("*lock"))


def test_a_folder_that_was_removed_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder ends, and removes the folder, after mkdir has found it and before it asks what it is."""
    own, left = Path.is_dir, iter([True])
    folder = tmp_path / "run"
    folder.mkdir()

    def is_dir(path: Path, **options: Any) -> bool:
        if path == folder and next(left, False):
            folder.rmdir()
        return own(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", is_dir)
        with locked(folder, "at work in", lambda: None):
            assert (folder / LOCK).exists()
    assert next(left, None) is None


def test_a_lock_that_was_removed_meanwhile_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder ends, and removes the file, after this process has opened it and before it locks it."""
    own, left = fcntl.flock, iter([True])

    def flock(handle: int, how: int) -> None:
        if next(left, False):
            (tmp_path / LOCK).unlink()
        own(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path, "at work in", lambda: None):
        assert (tmp_path / LOCK).exists()
        with pytest.raises(ValueError, match="another process is at work in"), locked(tmp_path, "at work in", list):
            pass
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_process_that_was_killed_is_free(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    assert score(model, FEW, out=tmp_path, **OPTIONS).documents == len(FEW)
    assert not (tmp_path / LOCK).exists()


def test_the_folder_is_looked_at_again_under_the_lock(model: LanguageModel, tmp_path: Path) -> None:
    """Where something is put into it between the first look and the lock, nothing is made of it."""
    looks: list[int] = []

    def check() -> None:
        check_own(tmp_path)
        if not looks:
            (tmp_path / "thesis.tex").write_text("mine")
        looks.append(1)

    with pytest.raises(ValueError, match=r"it holds thesis\.tex"), locked(tmp_path, "at work in", check):
        raise AssertionError("it is another's")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(
    run: Run, tiny_folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    done = run("score", tiny_folder, text, "--out", text.parent / "run")
    assert done.status == 0
    assert done.err.count("this file system has no locks; do not start a second process in this folder") == 1
    assert not (text.parent / "run" / LOCK).exists()


def test_another_error_of_a_lock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path, "at work in", lambda: None):
        pass


@contextmanager
def read_only(folder: Path, number: int = errno.EROFS) -> Iterator[None]:
    """Nothing below a folder can be opened for writing."""
    with pytest.MonkeyPatch.context() as patched:
        own = os.open

        def opened(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) and folder in Path(os.fsdecode(path)).parents:
                raise OSError(number, os.strerror(number), str(path))
            return own(path, flags, *rest, **options)

        patched.setattr(os, "open", opened)
        patched.setattr(os, "access", lambda path, how: how != os.W_OK)
        yield


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_finished_run_that_cannot_be_written_is_shown(run: Run, tiny_folder: Path, text: Path, number: int) -> None:
    folder = text.parent / "run"
    command = ["score", tiny_folder, text, "--out", folder, "--batch-tokens", 16, "--format", "json"]
    first = run(*command)
    before = state(folder)
    with read_only(folder, number):
        for again in (command, ["summary", folder, "--format", "json"]):
            done = run(*again)
            assert (done.status, done.out) == (0, first.out), done.err
        assert run("compare", folder, folder).status == 0
        refused(run(*command, "--window", 8), "holds another run: its setting.window is 64, and now it is 8")
    assert state(folder) == before
    (folder / "summary.json").write_text("{")
    with read_only(folder, number):
        done = run(*command)
    assert (done.status, done.out) == (0, first.out)
    assert "summary.json" in done.err
    shard = min(folder.glob("tokens-*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with read_only(folder, number):
        refused(run(*command), f"{shard} is damaged")
    shard.unlink()
    with read_only(folder, number):
        refused(run(*command), f"{folder} is unfinished and cannot be written: copy it")


def test_texts_that_have_no_digest_are_read_again_where_nothing_can_be_written(
    model: LanguageModel, tmp_path: Path
) -> None:
    whole = score(model, FEW, out=tmp_path / "run", **OPTIONS)
    with read_only(tmp_path / "run"):
        assert figures(score(model, FEW, out=tmp_path / "run", **OPTIONS)) == figures(whole)
        with pytest.raises(ValueError, match="its text has changed"):
            score(model, FEW[:-1], out=tmp_path / "run", **OPTIONS)
    interrupted(model, tmp_path / "half", 2, **OPTIONS)
    with read_only(tmp_path / "half"), pytest.raises(ValueError, match="is unfinished and cannot be written: copy it"):
        score(model, DOCUMENTS, out=tmp_path / "half", **OPTIONS)
    (tmp_path / "empty").mkdir()
    with read_only(tmp_path / "empty"), pytest.raises(ValueError, match="cannot be written and holds no run"):
        score(model, DOCUMENTS, out=tmp_path / "empty", **OPTIONS)


MOUNTED = """
import sys
from cynosure.cli import app
for line in sys.argv[1].splitlines():
    sys.argv = ["cynosure", *line.split("\\t")]
    try:
        app.main()
    except SystemExit as stop:
        print("status", stop.code, file=sys.stderr)
"""


def mounted_read_only(folder: Path, *commands: list[object]) -> list[str]:
    """What `cynosure` commands print, one after another, where a folder is mounted so that nothing can be written."""
    lines = "\n".join("\t".join(map(str, command)) for command in commands)
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", script, str(folder), sys.executable, "-c", MOUNTED, lines]
    try:
        trial = subprocess.run([*words[:6], "true"], capture_output=True, check=False).returncode
    except FileNotFoundError:
        trial = 1
    if trial:
        pytest.skip("nothing can be mounted here")
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=240)
    return (done.stdout + done.stderr).splitlines()


@pytest.mark.exhaustive
def test_on_a_disk_that_is_mounted_read_only(run: Run, tiny_folder: Path, text: Path) -> None:
    folder, half = text.parent / "disk" / "run", text.parent / "disk" / "half"
    command: list[object] = ["score", tiny_folder, text, "--batch-tokens", 16, "--out"]
    whole = run(*command, folder)
    interrupted(tiny(), half, 2, **OPTIONS)
    lines = mounted_read_only(folder.parent, [*command, folder], [*command, half], [*command, folder.parent / "new"])
    assert [line for line in lines if line.startswith("status")] == [f"status {code}" for code in (0, 2, 2)], lines
    assert whole.out.splitlines() == lines[: len(whole.out.splitlines())]
    assert f"cynosure: {folder.parent / 'new'}: read-only file system" in lines
    assert not (folder / LOCK).exists()


def test_a_file_is_written_beside_without_following_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, path = tmp_path / "target", tmp_path / "report.md"
    target.write_text("mine")
    path.symlink_to(target)
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)
    partial = tmp_path / f"report.md.{'0' * 16}.partial"
    partial.symlink_to(target)
    with pytest.raises(FileExistsError):
        write_whole(path, b"report")
    assert target.read_text() == "mine"
    partial.unlink(missing_ok=True)
    write_whole(path, b"report")
    assert (path.read_bytes(), path.is_symlink(), target.read_text()) == (b"report", False, "mine")
    path.chmod(0o600)
    write_whole(path, b"again")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"again", 0o600)


def test_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_out(pipe, b"report")
    assert (os.read(reader, 10), [path.name for path in tmp_path.iterdir()]) == (b"report", ["pipe"])
    os.close(reader)


def test_a_link_to_standard_output_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_text("")
    (tmp_path / "stdout").symlink_to(tmp_path / "out")
    monkeypatch.setattr(files, "DEVICES", tmp_path)
    write_out(tmp_path / "stdout", b"report")
    assert (tmp_path / "stdout").is_symlink()
    assert (tmp_path / "out").read_bytes() == b"report"


def test_only_the_files_of_a_run_are_removed(model: LanguageModel, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "scores", tmp_path / "elsewhere"
    remove_run(place)
    score(model, FEW, out=elsewhere, **OPTIONS)
    (elsewhere / "notes.txt").write_text("mine")
    before = state(elsewhere)
    with pytest.raises(ValueError, match=r"notes\.txt is not part of the run: move it out"):
        remove_run(elsewhere)
    assert state(elsewhere) == before
    (elsewhere / "notes.txt").unlink()
    place.symlink_to(elsewhere)
    remove_run(place)
    assert not list(elsewhere.iterdir())


def test_a_clock_that_goes_backwards(model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6, 0, -1))
    for name in ("time", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: float(next(ticks)))
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks) * 10**9)
    scores = score(model, FEW, out=tmp_path / "run", **OPTIONS)
    scores.save()
    again = open_run(tmp_path / "run")
    for found in (scores, again, score(model, FEW, **OPTIONS)):
        assert (found.seconds, found.tokens_per_second) == (0, None)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tokens_per_second"] is None
    assert figures(again) == figures(scores)
