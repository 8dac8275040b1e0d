"""A run folder from somebody else, its digests right: no code in it is run, and nonsense is said in one line."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cynosure.training import loop
from cynosure.training.folder import DIGESTS, RunFolder
from cynosure.training.integrity import Damaged, digest_of, digests_of
from cynosure.training.sharding import load_optimizer, tensors_alone
from tests.training.runs import N_STEPS, Noting, old, run
from tests.training.test_damage import assert_same, resumed
from tests.training.test_damage import copied as copied
from tests.training.test_damage import stopped as stopped
from tests.training.test_damage import whole as whole

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own

STEP = 6
WAY_OUT = "to resume from the checkpoint before it"


class Bomb:
    """A pickle that makes a file when something reads it and trusts it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def forged(out: Path) -> RunFolder:
    """The run, its digests made to fit what it holds now."""
    folder = RunFolder(out)
    place = folder.checkpoint(STEP)
    known = json.loads((place / DIGESTS).read_text())
    (place / DIGESTS).unlink()
    (place / DIGESTS).write_text(json.dumps(known | {"files": digests_of(place)}))
    changes = {"data_sha256": digests_of(out / "data"), "checkpoints": {str(STEP): digest_of(place / DIGESTS)}}
    folder.put_manifest(folder.manifest | changes)
    return folder


def test_bombs_are_known_to_go_off(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "trace"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_no_code_in_a_checkpoint_is_run(copied: Path, tmp_path: Path, name: str) -> None:
    place = copied / "checkpoints" / "step-000006"
    torch.save({"state": Bomb(tmp_path / "trace")}, place / name)
    forged(copied)
    with pytest.raises(Damaged, match=WAY_OUT) as refusal:
        run(copied, resume=True)
    assert str(place / name) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "trace").exists()


def test_no_code_in_a_sharded_optimizer_is_run(tmp_path: Path) -> None:
    """Neither in its description nor in what it holds besides tensors."""
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(Damaged, match=r"optimizer/.metadata cannot be read: it names .*, which describes no tensors"):
        load_optimizer(None, None, tmp_path)
    torch.save(Bomb(tmp_path / "trace"), tmp_path / "part")
    with tensors_alone(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "part", weights_only=False)
    assert not (tmp_path / "trace").exists()


def changed(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    """A value of the manifest, put in the place of another or, where it is ..., taken out."""

    def change(values: dict[str, Any]) -> None:
        for name in path[:-1]:
            values = values[name]
        if to is ...:
            del values[path[-1]]
        else:
            values[path[-1]] = to

    return change


MANIFESTS = [
    (changed("plan", to=[1]), "plan: [1] is not an object"),
    (changed("plan", "steps", to="12"), "plan: steps is '12', not int"),
    (changed("plan", "steps", to=True), "plan: steps is True, not int"),
    (changed("plan", "steps", to=0), "plan: steps is 0, not at least 1"),
    (changed("plan", "validate_steps", to=0), "plan: validate_steps is 0, not at least 1"),
    (changed("plan", "micro_rows", to=3), "plan: its micro-batches do not add up to its batch of 128 tokens"),
    (changed("plan", "learning_rate", to=...), "plan: learning_rate is missing"),
    (changed("plan", "pace", to=1), "plan: pace is unknown"),
    (changed("settings", "seed", to=None), "settings: seed is None, not int"),
    (changed("settings", "preset", to="huge"), "settings: unknown preset"),
    (changed("settings", "dtype", to=["float32"]), "settings: dtype is ['float32'], not str"),
    (changed("facts", "notes", to=[1]), "facts: notes is [1], not tuple"),
    (changed("environment", "threads", to="many"), "environment: threads is 'many', not int"),
    (changed("products", "float32", to=1), "products is {'float32': 1"),
    (changed("device", to=...), "device is missing"),
    (changed("corpus", to=None), "corpus is None, not dict"),
    (changed("checkpoints", to={"last": "0"}), "checkpoints: its names are not steps"),
    (changed("checkpoints", to={"6": 6}), "checkpoints is {'6': 6}"),
    (changed("data_sha256", to=3), "data_sha256 is 3"),
]


@pytest.mark.parametrize(("change", "words"), MANIFESTS)
def test_a_manifest_that_makes_no_sense(stopped: Path, tmp_path: Path, change: Any, words: str) -> None:
    """Though its own digest is right."""
    values = RunFolder(stopped).manifest
    change(values)
    folder = RunFolder(tmp_path)
    folder.put_manifest(values)
    with pytest.raises(Damaged) as refusal:
        run(tmp_path, resume=True)
    assert str(refusal.value).startswith(f"{tmp_path / 'train.json'} is damaged: {words}"), refusal.value
    assert "restore it from a copy, or train again with another `out`" in str(refusal.value)


def test_data_of_another_run(copied: Path) -> None:
    """Whose tokens are not the documents'; a line that is no document; numbers that are no tokens."""
    data = copied / "data"
    ids, valid = (data / "ids.int32").read_bytes(), (data / "valid.jsonl").read_text().splitlines(keepends=True)
    (data / "ids.int32").write_bytes(ids[:-8])
    forged(copied)
    with pytest.raises(Damaged, match=r"documents.npz cannot be read: expected 1,478 tokens, got 1,476"):
        run(copied, resume=True)
    (data / "ids.int32").write_bytes(ids[:-3])
    forged(copied)
    with pytest.raises(Damaged, match=r"ids.int32 cannot be read: Size of available data is not a multiple"):
        run(copied, resume=True)
    (data / "ids.int32").write_bytes(ids[:-4] + (300).to_bytes(4, "little"))
    forged(copied)
    with pytest.raises(ValueError, match=r"ids.int32: token 300 is beyond the model's embedding, which has 300"):
        run(copied, resume=True)
    (data / "ids.int32").write_bytes(ids)
    (data / "valid.jsonl").write_text("".join([*valid[:2], '{"name": "x", "text": 1}\n', *valid[3:]]))
    forged(copied)
    with pytest.raises(Damaged, match=r"valid.jsonl, line 3, is damaged: text is 1, not str"):
        run(copied, resume=True)


def test_a_run_of_an_earlier_version_goes_on(whole: Path, copied: Path, tmp_path: Path) -> None:
    """Damage to it cannot be seen, which is said; from now on it keeps digests. Trainer's arguments are not read."""
    folder, watcher = old(copied), Noting()
    torch.save(Bomb(tmp_path / "trace"), folder.checkpoint(STEP) / "training_args.bin")
    run(copied, watcher, resume=True)
    assert not (tmp_path / "trace").exists()
    assert f"{copied} is from an earlier version, which kept no digests: damage may go unnoticed" in watcher.notes
    assert_same(whole, copied)
    assert folder.kept.keys() == RunFolder(whole).kept.keys()
    assert None not in folder.kept.values()
    folder.check(N_STEPS)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """What reads all of the checkpoint that a run goes on from, as Trainer does before its first step, and stops."""

    def train(self: Any, resume_from_checkpoint: str) -> None:
        self.create_optimizer_and_scheduler(N_STEPS)
        self._load_from_checkpoint(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_rng_state(resume_from_checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Training, "train", train)

    def load_all(out: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(out, resume=True)

    return load_all


def test_damage_that_shows_without_digests(stopped: Path, tmp_path: Path, loading: Any) -> None:
    """transformers says which file it lacks, and removing the checkpoint is the way out."""
    out = Path(shutil.copytree(stopped, tmp_path / "run", copy_function=os.link))
    place = old(out).checkpoint(STEP)
    (place / "config.json").unlink()
    with pytest.raises(Damaged, match=WAY_OUT) as refusal:
        loading(out)
    assert str(place) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    shutil.rmtree(place)  # as the message says
    loading(out)


def test_the_state_of_another_step(stopped: Path) -> None:
    place = RunFolder(stopped).checkpoint(STEP)
    loop.check_state(place, STEP)
    with pytest.raises(Damaged, match=r"trainer_state.json cannot be read: it is of step 6; remove .*step-000006 to"):
        loop.check_state(place, STEP + 3)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_bad_line_is_named(stopped: Path, tmp_path: Path, earlier: bool) -> None:
    """Of a run of an earlier version too."""
    for name in ("metrics.jsonl", "validation.jsonl", "samples.jsonl"):
        out = tmp_path / name.partition(".")[0]
        shutil.copytree(stopped, out, copy_function=os.link)
        if earlier:
            old(out)
        lines = (out / name).read_text().splitlines(keepends=True)
        (out / name).unlink()
        (out / name).write_text("".join([lines[0][:20] + "\n", *lines[1:]]))
        with pytest.raises(Damaged, match=rf"{name}, line 1, is not JSON: .*another `out`"):
            resumed(out)
        (out / name).write_text('{"step": "1"}\n')
        with pytest.raises(
            Damaged, match=rf"{name}" + (", line 1, is damaged: step is '1', not int" if earlier else "")
        ):
            resumed(out)
