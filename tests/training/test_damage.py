"""A run with damage in any of its files goes on to the same weights from an earlier checkpoint, or is refused."""

import errno
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cynosure.measure import Corpus
from cynosure.system.workers import Workers
from cynosure.training import folder
from cynosure.training.begin import Consent, begin
from cynosure.training.folder import RunFolder
from cynosure.training.integrity import Damaged
from cynosure.training.run import TrainingRun
from tests.cli.test_bad_input import Run as Command
from tests.cli.test_bad_input import refused
from tests.cli.test_cli import run as run
from tests.training.runs import Noting, old, stopped_at, timeless
from tests.training.runs import run as trained
from tests.training.test_resume import assert_same

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own

LAST, BEFORE = "checkpoints/step-000006", "checkpoints/step-000003"
IN_CHECKPOINT = (
    "config.json", "digests.json", "generation_config.json", "model.safetensors", "optimizer.pt", "rng_state.pth",
    "scheduler.pt", "tokenizer.json", "tokenizer_config.json", "trainer_state.json", "training_args.bin",
)  # fmt: skip
DATA = (
    "documents.npz",
    "ids.int32",
    "predicted.bool",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "valid.jsonl",
)
LINES = ("metrics.jsonl", "samples.jsonl", "validation.jsonl")
FILES = (
    "train.json", *LINES, *(f"data/{name}" for name in DATA), *(f"{LAST}/{name}" for name in IN_CHECKPOINT),
    f"{BEFORE}/optimizer.pt",
)  # fmt: skip


def flipped(data: bytes, generator: random.Random) -> bytes:
    place = generator.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :]


def put(make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Other bytes in the place of a file's; the file itself may be shared with the sound run."""

    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(make(data))

    return damage


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


GENERATOR = random.Random(7)
DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit": put(lambda data: flipped(data, GENERATOR)),
    "first bit": put(lambda data: bytes([data[0] ^ 1]) + data[1:]),
    "cut off": put(lambda data: data[: len(data) // 3]),
    "emptied": put(lambda data: b""),
    "longer": put(lambda data: data + b"{}\n"),
    "garbage": put(lambda data: bytes(range(256)) * 3),
    "missing": Path.unlink,
    "a folder": as_folder,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "whole").folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After step 8, with checkpoints of the steps 3 and 6."""
    out = tmp_path_factory.mktemp("runs") / "stopped"
    stopped_at(8, out)
    return out


@pytest.fixture
def linked(stopped: Path, tmp_path: Path) -> Path:
    """A copy that shares its files."""
    return Path(shutil.copytree(stopped, tmp_path / "run", copy_function=os.link))


@pytest.fixture
def copied(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def resumed(out: Path) -> tuple[list[str], int]:
    """What is said when a run is about to go on, and the step that it goes on from; ValueError where it does not."""
    found, watcher = RunFolder(out), Noting()
    begin(found, Corpus([], {}), Corpus([], {}), None, True, watcher, 1, Consent())
    return watcher.notes, max(found.checkpoints, default=0)


def assert_begins_the_same(out: Path, stopped: Path, step: int) -> None:
    """All that the rest of a training depends on is what it was when the sound run had made its checkpoint."""
    found, sound = RunFolder(out), RunFolder(stopped)
    place = found.checkpoint(step).relative_to(out)
    for path in [*(stopped / "data").rglob("*"), *(stopped / place).rglob("*")]:
        if path.is_file():
            assert (out / path.relative_to(stopped)).read_bytes() == path.read_bytes()
    for name in LINES:
        assert found.lines(name) == [line for line in sound.lines(name) if line["step"] <= step]
    for name in ("settings", "plan", "facts", "products", "dtype"):
        assert found.manifest[name] == sound.manifest[name]


def test_every_file_of_a_run_is_tried(stopped: Path) -> None:
    found = {path.relative_to(stopped).as_posix() for path in stopped.rglob("*") if path.is_file()}
    others = {f"{BEFORE}/{name}" for name in IN_CHECKPOINT}
    assert {name for name in found if not name.startswith("validation/")} - others == set(FILES) - others


@pytest.mark.parametrize("name", FILES)
def test_damage_goes_back_or_is_refused(stopped: Path, tmp_path: Path, name: str) -> None:
    """Never to other weights, and never without a word: where training goes on, it is from what a sound run had."""
    refusals = []
    for number, (kind, damage) in enumerate([*DAMAGE.items(), *[("a bit", DAMAGE["a bit"])] * 8]):
        out = tmp_path / str(number)
        shutil.copytree(stopped, out, copy_function=os.link)
        damage(out / name)
        try:
            notes, step = resumed(out)
        except (ValueError, FileNotFoundError) as error:
            refusals.append((kind, str(error)))
            continue
        assert_begins_the_same(out, stopped, step)
        after = name in LINES and step == 6  # lines after the checkpoint are forgotten, damaged or not
        assert after or step == (3 if name.startswith((LAST, *LINES)) else 6)
        assert [str(out / name) in note for note in notes] == ([True] if step == 3 else []), kind
    for kind, message in refusals:
        assert str(out.parent) in message
        assert f"/{name}" in message, (kind, message)
        assert "\n" not in message
        assert name.startswith(("train", "data/", *LINES)), (kind, message)


def test_it_goes_on_to_the_same_weights(run: Command, whole: Path, copied: Path) -> None:
    """From the checkpoint before a damaged one, which is said and stays until it is made again."""
    path = copied / LAST / "optimizer.pt"
    DAMAGE["a bit"](path)
    damaged, pristine = path.read_bytes(), tuple((copied / name).read_bytes() for name in ("train.json", *LINES))
    assert resumed(copied)[1] == 3
    stopped_at(5, copied, resume=True)
    assert path.read_bytes() == damaged
    for name, data in zip(("train.json", *LINES), pristine, strict=True):
        (copied / name).write_bytes(data)
    done = run("train", "--out", copied, "--resume")
    assert done.status == 0, done.err
    assert f"note: {path} does not match its SHA-256: going back to the checkpoint of step 3" in done.err
    assert "resuming at step 3" in done.err
    assert_same(whole, copied)
    assert set(RunFolder(copied).checkpoints) == set(RunFolder(whole).checkpoints)


def test_a_lost_checkpoint_is_missed(linked: Path) -> None:
    shutil.rmtree(linked / LAST)
    assert resumed(linked) == ([f"{linked / LAST} is missing: going back to the checkpoint of step 3"], 3)
    assert resumed(linked) == ([], 3)


@pytest.mark.parametrize("place", [LAST, "data/tokenizer"])
def test_a_file_of_somebody_elses_is_not_read(linked: Path, place: str) -> None:
    """Which transformers might take for one of the run's; hidden files are the system's."""
    (linked / place / ".DS_Store").touch()
    assert resumed(linked) == ([], 6)
    (linked / place / "added_tokens.json").write_text("{}")
    what = f"{linked / place / 'added_tokens.json'} was not written by this run"
    if place == LAST:
        assert resumed(linked) == ([f"{what}: going back to the checkpoint of step 3"], 3)
    else:
        with pytest.raises(Damaged, match=re.escape(what)):
            resumed(linked)


@pytest.mark.parametrize("name", ["digests.json", "train.json"])
def test_a_disk_that_fills_up_while_a_checkpoint_is_kept(
    stopped: Path, linked: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """No checkpoint is lost, and the new one is none until it is written down."""
    run, own = RunFolder(linked), folder.write_whole

    def full(path: Path, data: bytes) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        own(path, data)

    made = linked / ".partial" / "checkpoint-9"
    shutil.copytree(linked / LAST, made)
    (made / "digests.json").unlink()
    monkeypatch.setattr(folder, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        run.keep(made, 9)
    monkeypatch.undo()
    assert set(run.checkpoints) == {3, 6}
    assert resumed(linked) == ([], 6)
    assert_begins_the_same(linked, stopped, 6)
    shutil.copytree(stopped / LAST, made)
    (made / "digests.json").unlink()
    run.keep(made, 9)
    assert set(run.checkpoints) == {6, 9}
    run.check(9)


def test_other_threads_go_on_to_rounding_which_is_said(whole: Path, copied: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        notes = stopped_at(8, copied, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert f"the run resumes up to rounding, not bit for bit: {threads + 1} threads instead of {threads}" in notes
    for ours, theirs in zip(timeless(copied), timeless(whole)[:8], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5)


def test_another_torch_is_said(linked: Path) -> None:
    found, watcher = RunFolder(linked), Noting()
    manifest = found.manifest
    TrainingRun(found, watcher, Workers(), (), Consent())
    assert watcher.notes == []
    found.put_manifest(manifest | {"environment": manifest["environment"] | {"torch": "2.6.0"}})
    TrainingRun(found, watcher, Workers(), (), Consent())
    (note,) = watcher.notes
    assert note.startswith("the run resumes up to rounding, not bit for bit: torch ")
    assert note.endswith(" instead of 2.6.0")


def test_it_never_begins_again_by_itself(run: Command, copied: Path) -> None:
    """Where there were checkpoints and none is sound; where there never was one, it begins at the first step."""
    before = (copied / "metrics.jsonl").read_bytes()
    shutil.rmtree(copied / LAST)
    DAMAGE["missing"](copied / BEFORE / "scheduler.pt")
    both = (f"{copied / LAST} is missing", f"{copied / BEFORE / 'scheduler.pt'} is missing", "another --out")
    refused(run("train", "--out", copied, "--resume"), *both)
    shutil.rmtree(copied / "checkpoints")
    refused(run("train", "--out", copied, "--resume"), f"{copied / BEFORE} is missing")
    assert (copied / "metrics.jsonl").read_bytes() == before
    (copied / "train.json").unlink()
    refused(run("train", "--out", copied, "--resume"), "no training run to resume")


def test_a_run_without_a_checkpoint_begins_at_its_first_step(tmp_path: Path) -> None:
    stopped_at(2, tmp_path / "run")
    assert resumed(tmp_path / "run") == ([], 0)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == b""


def test_the_best_model_is_a_sound_one(tmp_path: Path) -> None:
    """Of a run that was ruined at its end the best checkpoint is damaged: the best of the others is taken."""
    found, watcher = RunFolder(tmp_path / "run"), Noting()
    ruin = {"learning_rate": 0.5, "schedule": "wsd", "warmup": 0.8, "spike": 100.0}
    best = trained(found.path, **ruin).best_step
    assert best is not None
    assert best < max(found.kept)
    _, second, *_ = found.best_first(found.kept)
    DAMAGE["a bit"](found.checkpoint(best) / "model.safetensors")
    assert trained(found.path, watcher, resume=True, **ruin).best_step == second
    place = found.checkpoint(best) / "model.safetensors"
    assert (
        f"{place} does not match its SHA-256: the model is from step {second}, the best of the other checkpoints"
        in watcher.notes
    )
    taken = (found.path / "model" / "model.safetensors").read_bytes()
    assert taken == (found.checkpoint(second) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["missing", "cut off", "emptied"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
)
def test_a_part_of_a_checkpoint_without_digests(copied: Path, name: str, kind: str) -> None:
    """Trainer would make a fresh optimizer or schedule in silence."""
    old(copied)
    DAMAGE[kind](copied / LAST / name)
    notes, step = resumed(copied)
    assert step == 3
    assert "kept no digests" in notes[0]
    assert str(copied / LAST) in notes[1]
    assert name.partition(".")[0] in notes[1].replace("*", "")
    assert notes[1].endswith("going back to the checkpoint of step 3")


@pytest.mark.parametrize("name", ["metrics.jsonl", "validation.jsonl"])
@pytest.mark.parametrize("broken", [b"\0" * 40, b"{}", b'{"step": 4, "loss"'])
def test_a_line_of_a_run_without_digests(copied: Path, name: str, broken: bytes) -> None:
    """Of step 4 or later: the checkpoint of step 3 is sound, and what is before it stays."""
    old(copied)
    before = [line for line in RunFolder(copied).lines(name) if line["step"] <= 3]
    lines = (copied / name).read_bytes().splitlines(keepends=True)
    lines[len(before)] = broken + b"\n"
    (copied / name).write_bytes(b"".join(lines))
    notes, step = resumed(copied)
    assert step == 3
    assert notes[1].startswith(f"{copied / name}, line {len(before) + 1}, is ")
    assert notes[1].endswith("going back to the checkpoint of step 3")
    assert RunFolder(copied).lines(name) == before


@pytest.mark.parametrize("lost", [0, 1])
def test_random_numbers_of_one_process_without_digests(copied: Path, lost: int) -> None:
    old(copied)
    state = copied / LAST / "rng_state.pth"
    state.rename(state.with_stem(f"rng_state_{1 - lost}"))
    notes, step = resumed(copied)
    assert step == 3
    assert notes[1].startswith(f"{state.with_stem(f'rng_state_{lost}')} is missing")
