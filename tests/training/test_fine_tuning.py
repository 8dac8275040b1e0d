"""Fine-tuning: a model that is there, whole or by low-rank updates, and whether it keeps documents apart."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import cynosure
from cynosure.models import check_apart
from cynosure.text import Document
from cynosure.training.lora import with_updates
from tests.tiny import tiny_model
from tests.training.runs import documents, run, stopped_at, timeless

pytestmark = pytest.mark.filterwarnings("ignore")  # Trainer's own

NONE = {"preset": None, "vocab_size": None}


def test_a_model_that_is_there(tiny_folder: Path, tmp_path: Path) -> None:
    trained = run(tmp_path / "run", init=str(tiny_folder), learning_rate=1e-2, spike=100.0, **NONE)
    losses = [line["loss"] for line in timeless(trained.folder)]
    assert losses[-1] < losses[0]
    assert cynosure.load(str(trained.model_folder)).model.config.hidden_size == 16


def test_updates_alone_are_trained(tiny_folder: Path, tmp_path: Path) -> None:
    options = {"init": str(tiny_folder), "lora": 2, "learning_rate": 1e-2, "spike": 100.0} | NONE
    trained = run(tmp_path / "run", **options)
    kept = load_file(trained.folder / "adapter" / "adapter_model.safetensors")
    assert kept
    assert all("lora_" in name for name in kept)
    merged, own = (load_file(folder / "model.safetensors") for folder in (trained.model_folder, tiny_folder))
    assert merged.keys() == own.keys()
    assert torch.equal(merged["lm_head.weight"], own["lm_head.weight"])
    changed = {name for name in own if not torch.equal(merged[name], own[name])}
    assert changed == {name for name in own if "_proj" in name}
    losses = [line["loss"] for line in timeless(trained.folder)]
    assert losses[-1] < losses[0]


def test_a_run_goes_on_with_the_model_it_began_with(tiny_folder: Path, tmp_path: Path) -> None:
    """Of updates of low rank that is most of what is left in the end."""
    init = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    options = {"init": str(init), "lora": 2, "spike": 100.0} | NONE
    stopped_at(4, tmp_path / "run", **options)
    weights = load_file(init / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, init / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"has other weights than when .*run was started with it: put those"):
        run(tmp_path / "run", resume=True, **options)


def test_prompts_are_not_trained_on(tiny_folder: Path, tmp_path: Path) -> None:
    """Completions alone count, as in `score`."""
    texts = [Document(f"{i}", f"{d.text[:9]}{d.text}", 9) for i, d in enumerate(documents())]
    settings = cynosure.TrainSettings(
        init=str(tiny_folder), tokens=512, row_tokens=32, batch_tokens=256, dtype="float32", device="cpu", spike=100.0
    )
    trained = cynosure.train(texts, tmp_path / "run", settings)
    from tests.training.test_run import data_of

    data = data_of(trained.folder).tokenised()
    assert data.prompted.all()
    for predicted in np.split(data.predicted, data.edges[1:-1]):
        assert 5 <= 1 + int(np.flatnonzero(predicted[1:])[0]) <= 10
        assert predicted[10:].all()
    assert trained.scores is not None
    assert trained.scores.document_names


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma2", "Qwen3", "Mistral"])
def test_models_that_keep_documents_apart(kind: str) -> None:
    check_apart(tiny_model(kind), 300)


def test_models_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: position ids are thrown away, so that a row is one document."""
    model = tiny_model()
    own = model.model.forward

    def forgetful(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", forgetful)
    with pytest.raises(ValueError, match="does not keep the documents of a packed row apart"):
        check_apart(model, 300)


def test_models_without_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()

    def bare(input_ids: Any, use_cache: bool = False) -> Any:
        raise AssertionError("not to be called")

    monkeypatch.setattr(model.model, "forward", bare)
    with pytest.raises(ValueError, match="takes no position_ids"):
        check_apart(model, 300)


@pytest.mark.parametrize("rank", [1, 4])
def test_updates_of_any_rank_have_one_size(rank: int) -> None:
    config = with_updates(tiny_model(), rank, seed=0).peft_config["default"]
    assert (config.r, config.lora_alpha / config.r) == (rank, 2)
