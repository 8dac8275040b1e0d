"""Two processes that share every batch: one of them is killed, the run goes on; and a run changes its processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cynosure.training import Diverged
from cynosure.training.folder import RunFolder
from cynosure.training.run import among_the_living
from tests.training.fellows import DEATH, Notes
from tests.training.runs import N_STEPS, run, stopped_at, timeless
from tests.training.test_resume import assert_same

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own
ROOT = Path(__file__).parents[2]
NOTE = "the run has {} processes and was started with {}: it resumes up to rounding, not bit for bit"


def two_processes(folder: Path, phase: str) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [*start, "-m", "tests.training.fellows", str(folder), phase], cwd=ROOT, env=os.environ | settings,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two; one whose second process was killed, and went on; and one of a single process that two finished."""
    folder = tmp_path_factory.mktemp("runs")
    died = two_processes(folder, "begin")
    assert died.returncode == 1  # torchrun's own, whatever its processes end with
    assert "Signal 9 (SIGKILL) received by PID" in died.stderr, died.stderr
    assert len(timeless(folder / "killed")) == DEATH
    shutil.copytree(folder / "killed", folder / "alone")
    stopped_at(7, folder / "joined")
    resumed = two_processes(folder, "resume")
    assert resumed.returncode == 0, resumed.stderr
    return folder


@pytest.mark.exhaustive
def test_a_run_goes_on_after_one_of_two_processes_was_killed(runs: Path) -> None:
    assert_same(runs / "whole", runs / "killed")
    assert not list((runs / "killed").glob("*.partial"))


@pytest.mark.exhaustive
def test_processes_and_steps_draw_other_columns(runs: Path) -> None:
    lines = timeless(runs / "sampled")
    assert all(0 < line["columns_kept"] < 1 for line in lines)
    seeds = [(runs / f"seeds-{rank}").read_text().split() for rank in range(2)]
    assert len(seeds[0]) == len(seeds[1]) == 2 * N_STEPS
    assert len({*seeds[0], *seeds[1]}) == 4 * N_STEPS


def test_the_others_say_why_they_end() -> None:
    gloo = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
    with (
        pytest.raises(ConnectionError, match=r"another process of this run has ended: .* `resume=True`"),
        among_the_living(),
    ):
        raise gloo
    with pytest.raises(RuntimeError, match="shapes"), among_the_living():
        raise RuntimeError("shapes do not match")
    with pytest.raises(Diverged), among_the_living():
        raise Diverged("training diverged")


@pytest.mark.exhaustive
def test_other_processes_go_on_to_rounding_which_is_said(runs: Path, tmp_path: Path) -> None:
    run(runs / "alone", Notes(tmp_path / "notes"), resume=True)
    assert (tmp_path / "notes").read_text().startswith(NOTE.format(1, 2))
    assert (runs / "notes").read_text().startswith(NOTE.format(2, 1))
    for name in ("alone", "joined"):
        assert RunFolder(runs / name).manifest["plan"]["processes"] == (2 if name == "alone" else 1)
        for ours, theirs in zip(timeless(runs / name), timeless(runs / "whole"), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5)
