"""Code of a model's own is trusted anew each time a run is begun or resumed, and stays the same."""

import json
from pathlib import Path
from typing import Any

import pytest

import cynosure
from cynosure.models.remote_code import code_sha256
from cynosure.training.folder import RunFolder
from tests.models.test_remote_code import CODE
from tests.models.test_remote_code import change as change
from tests.models.test_remote_code import coded as coded
from tests.models.test_remote_code import ran as ran
from tests.training.runs import SETTINGS, documents

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own

SHORT = SETTINGS | {"preset": None, "vocab_size": None, "tokens": 128, "validate_every": 128, "spike": 100.0}


def train(out: Path, resume: bool = False, settings: dict[str, Any] | None = None, **options: Any) -> Any:
    known = None if settings is None else cynosure.TrainSettings(**(SHORT | settings))
    return cynosure.train([] if resume else documents(10), out, known, resume=resume, **options)


def test_a_model_with_code_of_its_own(coded: Path, ran: Path, tmp_path: Path) -> None:
    settings = {"init": str(coded)}
    with pytest.raises(ValueError, match=r"needs Python code of its own, odd\.py"):
        train(tmp_path / "run", settings=settings)
    assert not ran.exists()
    trained = train(tmp_path / "run", settings=settings, trust_remote_code=True)
    assert RunFolder(trained.folder).manifest["code"] == {"model": f"sha256:{code_sha256(coded)}"}
    assert "trust_remote_code" not in json.dumps(RunFolder(trained.folder).manifest)  # a folder agrees to nothing
    ran.unlink()
    with pytest.raises(ValueError, match="started with the model's own Python code: give `trust_remote_code=True`"):
        train(trained.folder, resume=True)
    assert not ran.exists()
    again = train(trained.folder, resume=True, trust_remote_code=True)
    assert again.scores.nats == trained.scores.nats
    (coded / "odd.py").write_text(CODE.format(ran=str(ran)) + "\n# changed\n")
    with pytest.raises(
        ValueError, match=r"was started with other code: its code\.model is sha256:.* start another run"
    ):
        train(trained.folder, resume=True, trust_remote_code=True)


def test_updates_of_a_model_with_code_of_its_own(coded: Path, tmp_path: Path) -> None:
    trained = train(tmp_path / "run", settings={"init": str(coded), "lora": 2}, trust_remote_code=True)
    assert (trained.model_folder / "odd.py").is_file()


def test_a_run_without_code_says_nothing_of_it(tiny_folder: Path, tmp_path: Path) -> None:
    trained = train(tmp_path / "run", settings={"init": str(tiny_folder)}, trust_remote_code=True)
    assert "code" not in RunFolder(trained.folder).manifest


def test_weights_left_unused_are_allowed_or_refused(change, tmp_path: Path) -> None:
    settings = {"init": str(change(num_hidden_layers=1))}
    with pytest.raises(ValueError, match="leaves unused: 9 tensors"):
        train(tmp_path / "run", settings=settings)
    notes: list[str] = []
    watcher = cynosure.Watcher()
    watcher.note = notes.append
    train(tmp_path / "run", settings=settings, allow_unused_weights=True, watcher=watcher)
    assert any("weights that are left unused: 9 tensors" in note for note in notes)
