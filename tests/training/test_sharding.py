"""FSDP2 over gloo: two processes, each with its part of every weight, train as one and go on after a kill."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cynosure import TrainSettings
from cynosure.training.folder import RunFolder
from cynosure.training.integrity import Damaged
from tests.training.ranks import DEATH, untied
from tests.training.runs import N_STEPS, old, run, timeless
from tests.training.test_resume import assert_same

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own
ROOT = Path(__file__).parents[2]


def two_processes(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, "ACCELERATE_USE_FSDP": "true"}
    return subprocess.run(
        [*start, "-m", "tests.training.ranks", *map(str, arguments)], cwd=ROOT, env=os.environ | settings,
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run, one of an untied model, and one that is killed and goes on: in two processes, and in one."""
    folder = tmp_path_factory.mktemp("runs")
    died = two_processes(folder, tiny_folder, "begin")
    assert died.returncode != 0
    assert "Signal 9 (SIGKILL)" in died.stderr, died.stderr
    assert len(timeless(folder / "killed")) == DEATH
    shutil.copytree(folder / "killed", folder / "alone")
    resumed = two_processes(folder, tiny_folder, "resume")
    assert resumed.returncode == 0, resumed.stderr
    return folder


@pytest.mark.parametrize("name", ["whole", "untied"])
@pytest.mark.exhaustive
def test_two_processes_follow_ones_curve(runs: Path, tiny_folder: Path, tmp_path: Path, name: str) -> None:
    run(tmp_path / "one", **(untied(tiny_folder) if name == "untied" else {}))
    for ours, one in zip(timeless(runs / name), timeless(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(one["loss"], rel=2e-5)
        assert ours["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    a, b = (RunFolder(folder).lines("validation.jsonl") for folder in (tmp_path / "one", runs / name))
    assert [line["step"] for line in a] == [line["step"] for line in b] == [3, 6, 9, 12]
    for x, y in zip(a, b, strict=True):
        assert y["nats_per_token"]["value"] == pytest.approx(x["nats_per_token"]["value"], rel=2e-5)
    assert RunFolder(runs / name).manifest["settings"]["fsdp"]


@pytest.mark.exhaustive
def test_each_process_keeps_its_part(runs: Path) -> None:
    """Of the optimizer's moments, and so of what it updates."""
    place = RunFolder(runs / "whole").checkpoints[N_STEPS] / "optimizer"
    parts = [(place / f"__{rank}_0.distcp").stat().st_size for rank in range(2)]
    moments = 2 * (place.parent / "model.safetensors").stat().st_size
    assert max(parts) < 0.6 * moments
    assert sum(parts) == pytest.approx(moments, rel=0.1)


@pytest.mark.exhaustive
def test_killed_and_resumed_is_the_same_run(runs: Path) -> None:
    assert_same(runs / "whole", runs / "killed")


@pytest.mark.exhaustive
def test_one_process_goes_on_with_a_run_of_two(runs: Path) -> None:
    run(runs / "alone", resume=True)
    for ours, one in zip(timeless(runs / "whole"), timeless(runs / "alone"), strict=True):
        assert ours["loss"] == pytest.approx(one["loss"], rel=2e-5)


@pytest.mark.exhaustive
def test_damage_to_a_part_is_found(runs: Path, tmp_path: Path) -> None:
    """By its digest, and in a run of an earlier version when it is read."""
    out = Path(shutil.copytree(runs / "whole", tmp_path / "run"))
    part = RunFolder(out).checkpoint(N_STEPS) / "optimizer" / "__1_0.distcp"
    for path in (part, part.parent / ".metadata"):
        data = path.read_bytes()
        path.write_bytes(data[:-100])
        with pytest.raises(Damaged, match=re.escape(f"{path} does not match its SHA-256")):
            RunFolder(out).check(N_STEPS)
        old(out)
        with pytest.raises(Damaged, match=rf"optimizer.* cannot be read: .*; remove {part.parents[1]} to resume"):
            run(out, resume=True)
        shutil.rmtree(out)
        shutil.copytree(runs / "whole", out)


def test_updates_of_low_rank_are_not_shared() -> None:
    with pytest.raises(ValueError, match="give one of the two"):
        TrainSettings(init="smollm2", lora=4, fsdp=True)
