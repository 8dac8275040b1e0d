"""A run that was killed goes on: the same figures and weights, bit for bit, as one that was not."""

import random
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cynosure
from cynosure.measure import Corpus
from cynosure.training import begin, loop
from cynosure.training.folder import RunFolder
from tests.measure.test_folder import read_only, state
from tests.training.runs import N_STEPS, SETTINGS, apart, documents, run, stopped_at, timeless

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own

MOMENTS = ("step", "validation", "saving", "keeping")
GENERATOR = random.Random(6)
CRASHES = [(GENERATOR.randint(1, N_STEPS - 1), MOMENTS[i % len(MOMENTS)]) for i in range(5)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert apart(out) == 0
    return out


def assert_same(a: Path, b: Path) -> None:
    assert timeless(a) == timeless(b)
    for name in ("validation.jsonl", "samples.jsonl"):
        assert (a / name).read_text() == (b / name).read_text()
    weights, others = (load_file(folder / "model" / "model.safetensors") for folder in (a, b))
    assert weights.keys() == others.keys()
    assert all((weights[name] == others[name]).all() for name in weights)


@pytest.mark.parametrize(
    ("step", "moment"), [*CRASHES[:1], *(pytest.param(*crash, marks=pytest.mark.exhaustive) for crash in CRASHES[1:])]
)
def test_killed_at_a_random_step(whole: Path, tmp_path: Path, step: int, moment: str) -> None:
    out = tmp_path / "run"
    assert apart(out, step, moment) == -signal.SIGKILL
    assert len(timeless(out)) < N_STEPS or step >= N_STEPS - 2
    assert apart(out, resume=True) == 0
    assert_same(whole, out)
    assert not list(out.rglob("*.partial"))


@pytest.mark.exhaustive
def test_killed_twice(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert apart(out, 5, "step") == apart(out, 8, "step", resume=True) == -signal.SIGKILL
    assert apart(out, resume=True) == 0
    assert_same(whole, out)


@pytest.mark.exhaustive
def test_dropout_goes_on_too(tmp_path: Path, tiny_dropout: Path) -> None:
    """Whose random numbers are part of a checkpoint."""
    options = {"preset": None, "vocab_size": None, "init": str(tiny_dropout), "learning_rate": 1e-2}
    assert apart(tmp_path / "whole", **options) == 0
    assert apart(tmp_path / "run", 5, "step", **options) == -signal.SIGKILL
    assert apart(tmp_path / "run", resume=True, **options) == 0
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.exhaustive
def test_experts_go_on_too(tmp_path: Path, tiny_mixtral: Path) -> None:
    """Whose weights are saved one by one, and trained in one piece."""
    options = {"preset": None, "vocab_size": None, "init": str(tiny_mixtral), "learning_rate": 1e-2, "tokens": 128 * 6}
    assert apart(tmp_path / "whole", **options) == 0
    assert apart(tmp_path / "run", 4, "step", **options) == -signal.SIGKILL
    assert apart(tmp_path / "run", resume=True, **options) == 0
    assert_same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.exhaustive
def test_updates_of_low_rank_go_on_too(tmp_path: Path, tiny_dropout: Path) -> None:
    options = {"preset": None, "vocab_size": None, "init": str(tiny_dropout), "lora": 2, "tokens": 128 * 6}
    assert apart(tmp_path / "whole", **options) == 0
    assert apart(tmp_path / "run", 4, "step", **options) == -signal.SIGKILL
    assert apart(tmp_path / "run", resume=True, **options) == 0
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_finished_run_stays_as_it_is(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    again = cynosure.train([], whole, resume=True)
    assert (whole / "metrics.jsonl").read_bytes() == before
    assert again.plan.steps == N_STEPS


def test_another_text_or_setting_is_not_its_own(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="started with seed 0, not 1: leave it out"):
        cynosure.train([], whole, cynosure.TrainSettings(seed=1), resume=True)
    with pytest.raises(ValueError, match="holds another run: give `resume=True`"):
        cynosure.train(documents(), whole, cynosure.TrainSettings(**SETTINGS))
    with pytest.raises(FileNotFoundError, match="no training run to resume"):
        cynosure.train([], tmp_path, resume=True)


def test_lines_are_whole_or_passed_over(tmp_path: Path) -> None:
    """Whatever a model writes, and where the last line was cut off."""
    folder = RunFolder(tmp_path)
    written = [{"step": 1, "text": "a\u2028b\x85c\nd"}, {"step": 2, "text": ""}]
    for line in written:
        folder.append("samples.jsonl", line)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write('{"step": 3, "te')
    assert folder.lines("samples.jsonl") == written
    folder.rewind(1)
    assert folder.lines("samples.jsonl") == written[:1]


def test_two_runs_do_not_share_a_folder(whole: Path, tmp_path: Path) -> None:
    for folder, resume in ((tmp_path / "new", False), (whole, True)):
        with RunFolder(folder).locked(), pytest.raises(ValueError, match="another process is training in"):
            run(folder, resume=resume)
    assert not (tmp_path / "new").exists()


def test_a_run_that_never_began_gives_way(tmp_path: Path) -> None:
    """Killed while its data was written."""
    out = tmp_path / "run"
    (out / ".partial" / "data").mkdir(parents=True)
    (out / ".partial" / "data" / "ids.int32").write_bytes(b"half")
    (out / "data").mkdir()
    run(out, tokens=256)
    assert RunFolder(out).checkpoints.keys() == {1, 2} or RunFolder(out).checkpoints


def test_a_finished_run_that_cannot_be_written_is_shown(whole: Path) -> None:
    finished = cynosure.train([], whole, resume=True)
    before = state(whole)
    with read_only(whole):
        again = cynosure.train([], whole, resume=True)
        with pytest.raises(ValueError, match="started with seed 0, not 1: leave it out"):
            cynosure.train([], whole, cynosure.TrainSettings(seed=1), resume=True)
    assert state(whole) == before
    for name in ("folder", "plan", "parameters", "best_step", "unigram_bits_per_byte"):
        assert getattr(again, name) == getattr(finished, name)
    assert again.scores is not None
    assert finished.scores is not None
    assert again.scores.to_json() == finished.scores.to_json()


def test_an_unfinished_run_that_cannot_be_written(whole: Path, tmp_path: Path) -> None:
    cases = {"scores": "scores/manifest.json", "model": "model", "last": f"checkpoints/step-{N_STEPS:06d}"}
    for name, lacking in cases.items():
        out = shutil.copytree(whole, tmp_path / name)
        (out / lacking).rename(tmp_path / f"{name} away")
        with read_only(out), pytest.raises(ValueError, match="is unfinished and cannot be written: copy it"):
            cynosure.train([], out, resume=True)
    with read_only(tmp_path / "new"), pytest.raises(OSError, match="Read-only"):
        run(tmp_path / "new")


def test_what_is_put_among_a_runs_scores_is_not_removed(whole: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "run")
    (out / "scores" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"scores/notes\.txt is not part of the run: move it out"):
        cynosure.train([], out, resume=True)
    assert (out / "scores" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"hold_out": 0.1}, "started with hold_out 0.2, not 0.1"),  # the default, and not the run's
        ({"device": "auto"}, "started with device cpu, not auto"),
        ({"learning_rate": 3e-4}, "started with learning_rate 0.002, not 0.0003"),
    ],
)
def test_defaults_that_are_given_count(tmp_path: Path, option: dict[str, Any], says: str) -> None:
    out = tmp_path / "run"
    stopped_at(2, out, hold_out=0.2, learning_rate=0.002)
    with pytest.raises(ValueError, match=says):
        cynosure.train([], out, cynosure.TrainSettings(**option), resume=True)
    given = cynosure.TrainSettings(hold_out=0.2, row_tokens=16, tokenizer=None)
    assert given.given == {"hold_out": 0.2, "row_tokens": 16}
    begin.check_same(RunFolder(out), RunFolder(out).manifest, Corpus([], {}), Corpus([], {}), given)


def test_what_was_left_open_may_be_given_as_it_was_settled(tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped_at(2, out)
    folder = RunFolder(out)
    rate = folder.manifest["plan"]["learning_rate"]
    for value, fits in ((rate, True), (rate * 2, False)):
        given = cynosure.TrainSettings(learning_rate=value)
        with nullcontext() if fits else pytest.raises(ValueError, match=f"started with learning_rate {rate}, not"):
            begin.check_same(folder, folder.manifest, Corpus([], {}), Corpus([], {}), given)


def test_a_run_that_cannot_take_its_first_step_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: Trainer's arguments are refused, which is known only when data and manifest are written."""

    def refused(*args: Any, **options: Any) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(loop, "arguments_of", refused)
    with pytest.raises(ValueError, match="planted"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_model_to_begin_with_is_found_from_any_folder(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    options = {"preset": None, "vocab_size": None, "lora": 2, "tokens": 128 * 4, "spike": 100.0}
    monkeypatch.chdir(tmp_path)
    stopped_at(3, tmp_path / "run", init="model", **options)
    assert RunFolder(tmp_path / "run").manifest["settings"]["init"] == str(init)
    monkeypatch.chdir("/")
    init.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=f"no longer at {init}: put it back, or leave a link"):
        cynosure.train([], tmp_path / "run", resume=True)
    init.symlink_to(tmp_path / "moved")
    cynosure.train([], tmp_path / "run", resume=True)
    shown = cynosure.load(str(tmp_path / "run"), device="cpu")
    adapter = cynosure.load(str(tmp_path / "run" / "adapter"), device="cpu")
    assert (shown.name, adapter.name) == ("run", "adapter")
    for name, tensor in shown.model.state_dict().items():
        torch.testing.assert_close(adapter.model.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)
    weights = load_file(init / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, init / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="was trained on other weights than"):
        cynosure.load(str(tmp_path / "run" / "adapter"))
