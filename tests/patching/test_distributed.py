"""Two processes over gloo train as one: DDP, FSDP2, Trainer and SFTTrainer, also where their tokens are not equal."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.patching.ranks import BATCHES, FAMILIES, WRAPPINGS, inputs
from tests.patching.test_patch import IGNORED, family
from tests.patching.test_trainer import trainer_of
from tests.patching.test_trl import sft_trainer_of
from tests.patching.trainers import trained_and_evaluated

ROOT = Path(__file__).parents[2]
CASE = ("name", "wrapping", "which")
pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the two processes have found; both run all cases that are tested, once."""
    folder = tmp_path_factory.mktemp("ranks")
    items = [
        item
        for item in request.session.items
        if getattr(item, "function", None) is test_loss_and_gradients_are_one_processes
    ]
    cases = [[item.callspec.params[name] for name in CASE] for item in items]
    (folder / "cases.json").write_text(json.dumps(cases))
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*run, "-m", "tests.patching.ranks", str(folder)], capture_output=True, text=True, cwd=ROOT, env=environment,
        check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "found.pt", weights_only=False)


@pytest.mark.each_value
@pytest.mark.parametrize("which", BATCHES)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_one_processes(found: Any, name: str, wrapping: str, which: str) -> None:
    model, whole = family(name), inputs(which)
    n_items = (whole["labels"][:, 1:] != IGNORED).sum()
    loss = model(**whole, num_items_in_batch=n_items, use_cache=False).loss
    loss.backward()
    ours = found["steps"][name, wrapping, which]
    torch.testing.assert_close(ours.pop("loss"), loss.detach(), rtol=1e-5, atol=1e-6)
    assert ours.keys() == {n for n, _ in model.named_parameters()}
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(
            ours[parameter], value.grad, rtol=1e-4, atol=1e-6, msg=lambda m, n=parameter: f"{n}: {m}"
        )


@pytest.mark.parametrize("name", FAMILIES[:2])
def test_a_loss_outside_of_ddp_has_all_gradients(found: Any, name: str) -> None:
    model, whole = family(name), inputs("equal")
    logits = model(**{key: x for key, x in whole.items() if key != "labels"}, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole["input_ids"].flatten()).backward()
    for parameter, value in model.named_parameters():
        torch.testing.assert_close(found["outside"][name][parameter], value.grad, rtol=1e-4, atol=1e-6)


def test_heads_that_transformers_makes_tensor_parallel_are_refused(found: Any) -> None:
    assert found["tensor-parallel"] == (
        "LlamaForCausalLM cannot be patched: its head is tensor-parallel (a DTensor with placements "
        "(Shard(dim=0),)): leave the head out of the parallel plan"
    )


@pytest.mark.filterwarnings("ignore")  # Trainer's and TRL's own
@pytest.mark.parametrize("trainer", ["Trainer", "SFTTrainer"])
def test_trainers_end_with_one_processes_weights_and_figures(found: Any, tmp_path: Path, trainer: str) -> None:
    make = {"Trainer": trainer_of, "SFTTrainer": sft_trainer_of}[trainer]
    losses, weights, figures = trained_and_evaluated(make(tmp_path, rows_per_process=4))
    their_losses, their_weights, their_figures = found[trainer]
    assert their_losses == pytest.approx(losses, rel=1e-5)
    assert their_figures == pytest.approx(figures, rel=1e-6)
    for name, value in weights.items():
        torch.testing.assert_close(their_weights[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
