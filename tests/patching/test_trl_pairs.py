"""TRL's trainers that read log-probabilities of pairs of texts from logits: evaluated, restored and refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

import cynosure
from cynosure.patching import patch
from cynosure.patching.preferences import mean_logits
from cynosure.patching.verify import attribute
from tests.patching.test_patch import batch, family
from tests.patching.test_trl_others import OF_PAIRS, trainer_of

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own


def pairing(name: str, folder: Path, adapter: Any = None) -> Any:
    torch.manual_seed(0)
    trainer = trainer_of(OF_PAIRS[name], folder, adapter)
    # The trainer tokenizes a data set of its own for evaluation.
    trainer.eval_dataset = trainer.train_dataset.select(range(3))
    return trainer


def evaluated(trainer: Any) -> dict[str, float]:
    found = trainer.evaluate()
    return {name: x for name, x in found.items() if not name.endswith(("runtime", "second"))}


@pytest.mark.parametrize("name", ["SimPO", "ORPO"])
def test_evaluation_and_its_end(name: str, tmp_path: Path) -> None:
    trainer = pairing(name, tmp_path, LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    own, before = evaluated(trainer), set(vars(trainer))
    with patch(trainer) as handle:
        found = evaluated(trainer)
        assert handle.model_patch.fused >= 2
        assert handle.model_patch.made_by == []
        cynosure.unpatch(trainer)
    assert set(vars(trainer)) == before
    assert evaluated(trainer) == own
    assert {"eval_loss", "eval_logits/chosen"} <= set(own)
    assert found == pytest.approx(own, rel=1e-4, abs=1e-5)


def test_log_probabilities_that_are_not_known_are_refused(tmp_path: Path) -> None:
    trainer = pairing("ORPO", tmp_path)
    own, before, logits = trainer.get_batch_logps, set(vars(trainer.model)), torch.randn(2, 3, 7)
    with patch(trainer):  # a caller's own logits
        labels = torch.tensor([[0, 1, 2], [3, 4, -100]])
        assert torch.equal(trainer.get_batch_logps(logits, labels), own(logits, labels))
    for other in (lambda *args, **kwargs: 2 * own(*args, **kwargs), lambda logits: logits):
        trainer.get_batch_logps = other
        with pytest.raises(ValueError, match=r"its log-probabilities are not those of TRL 1\.16: train it unpatched"):
            patch(trainer)
    assert set(vars(trainer.model)) == before


def reached(logits: Tensor) -> set[Tensor]:
    """The leaves of the graph that DistributedDataParallel searches, which is not that of Python's attributes."""
    with torch._C.DisableTorchFunctionSubclass():
        nodes, leaves = [logits.grad_fn], set()
    while nodes:
        node = nodes.pop()
        leaves.add(getattr(node, "variable", None))
        nodes += [after for after, _ in node.next_functions if after is not None]
    return leaves


def test_every_parameter_is_reached_from_deferred_logits() -> None:
    model = family("Phi, biased")
    with patch(model) as patched, attribute(patched, "without_labels", True):
        logits = model(batch()["input_ids"]).logits
        for derived in (logits, logits.float()[:, 1:]):
            assert reached(derived) >= {*model.parameters()}
        assert patched.made_by == []
        with torch.no_grad():
            assert model(batch()["input_ids"]).logits.grad_fn is None


@pytest.mark.parametrize("name", ["Gemma 2", "Cohere", "Phi, biased"])
def test_means_of_logits(name: str) -> None:
    model = family(name)
    given = {key: x for key, x in batch().items() if key != "labels"}
    truth = model(**given).logits.mean(-1)
    with patch(model) as patched, attribute(patched, "without_labels", True):
        logits = model(**given).logits
        torch.testing.assert_close(mean_logits(logits), truth.detach(), rtol=1e-4, atol=1e-5)
        assert patched.made_by == []
    assert mean_logits(truth) is truth
