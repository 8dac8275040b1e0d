"""A patched model whose backward is sampled: the same loss, and nothing is drawn where no gradient is wanted."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl.trainer.utils import add_fused_lm_head

import cynosure
from cynosure.loss import devices, record_sampling
from cynosure.patching import Patch, TrainerPatch, patch
from cynosure.patching.verify import VERIFIED
from tests.patching.test_trainer import rows
from tests.patching.trainers import OPTIONS, padding_tokenizer
from tests.tiny import tiny_model

TOLERANCE = 0.4


@pytest.fixture
def model() -> Any:
    return tiny_model(spread=0.3)


def batch() -> dict[str, Tensor]:
    ids = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def step(model: Any) -> tuple[Tensor, Tensor]:
    """The loss and the gradient of the head's weight."""
    model.zero_grad()
    loss = model(**batch()).loss
    loss.backward()
    return loss.detach(), model.get_output_embeddings().weight.grad.clone()


def test_only_training_is_sampled(model: Any) -> None:
    exact_loss, exact = step(model)
    before = torch.get_rng_state()
    with record_sampling() as records, patch(model, grad_tolerance=TOLERANCE) as patched:
        assert patched.grad_tolerance == TOLERANCE
        torch.manual_seed(0)
        state = torch.get_rng_state()
        with torch.no_grad():
            model(**batch())
        model.generate(batch()["input_ids"], max_new_tokens=3, do_sample=False)
        assert records == []
        assert torch.equal(torch.get_rng_state(), state)
        loss, gradient = step(model)
    (record,) = records
    assert 0 < record.columns_kept < 0.5
    torch.testing.assert_close(loss, exact_loss)
    assert 0 < float((gradient - exact).norm() / exact.norm()) < 2 * TOLERANCE
    assert not torch.equal(torch.get_rng_state(), before)


def test_the_verification_is_exact(model: Any) -> None:
    state = torch.get_rng_state()
    with record_sampling() as records, patch(model, grad_tolerance=TOLERANCE):
        VERIFIED.pop(model)
        patch(model)
        assert model in VERIFIED
    assert records == []
    assert torch.equal(torch.get_rng_state(), state)


def test_an_audit_is_exact(model: Any) -> None:
    ids = torch.randint(2, 300, (2, 24), generator=torch.Generator().manual_seed(0))
    with record_sampling() as records, patch(model, grad_tolerance=TOLERANCE) as patched:
        audit = cynosure.audit(model, [{"input_ids": ids, "labels": ids}])
        assert patched.grad_tolerance == TOLERANCE
    assert audit.findings == ()
    assert records == []


def test_the_tolerance_stays(model: Any) -> None:
    """In copies too, and when the model is patched again; a new patch is exact."""
    with patch(model, grad_tolerance=TOLERANCE) as patched:
        with patch(model):
            pass
        cynosure.causal_lm_loss(model, batch()["input_ids"])
        assert patched.grad_tolerance == TOLERANCE
        patched.generator = torch.Generator()
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other._cynosure_patch.grad_tolerance == TOLERANCE
            with record_sampling() as records:
                step(other)
            assert len(records) == 1
        with patch(model, grad_tolerance=0.0):
            assert patched.grad_tolerance == 0.0
    with patch(model) as again:
        assert again.grad_tolerance == 0.0


def test_a_generator_of_its_own(model: Any) -> None:
    with patch(model, grad_tolerance=TOLERANCE) as patched:
        found = []
        for seed in (1, 1, 2):
            patched.generator = torch.Generator().manual_seed(seed)
            state = torch.get_rng_state()
            found.append(step(model)[1])
            assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.filterwarnings("ignore")  # TRL's own
def test_log_probabilities_repeat_their_draw(model: Any) -> None:
    add_fused_lm_head(model)
    with patch(model, grad_tolerance=TOLERANCE), record_sampling() as records:
        logprobs = model(**batch(), fused_lm_head=True).log_probs
        weight = model.get_output_embeddings().weight
        first, second = (torch.autograd.grad(logprobs.sum(), weight, retain_graph=True)[0] for _ in range(2))
    assert len(records) == 2
    assert records[0].columns_kept < 0.5
    assert torch.equal(first, second)


@pytest.mark.filterwarnings("ignore")  # Trainer's own
def test_a_trainer(model: Any, tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), **(OPTIONS | {"max_steps": 2}))
    data = rows()
    trainer = Trainer(
        model, arguments, DataCollatorForSeq2Seq(padding_tokenizer()), train_dataset=data, eval_dataset=data[:4]
    )
    with patch(trainer, grad_tolerance=0.9, head_dtype=torch.float64) as patched, record_sampling() as records:
        assert isinstance(patched, TrainerPatch)
        trainer.train()
        n_records = len(records)
        assert n_records >= 2
        trainer.evaluate()
        assert len(records) == n_records
        with patch(trainer, grad_tolerance=0.25):
            assert (patched.model_patch.grad_tolerance, patched.model_patch.head_dtype) == (0.25, torch.float64)


@pytest.mark.parametrize(
    ("tolerance", "error"), [(-0.1, ValueError), (1.5, ValueError), ("foo", ValueError), (True, TypeError)]
)
def test_a_bad_tolerance_is_refused_at_once(model: Any, tolerance: Any, error: Any) -> None:
    before = dict(vars(model))
    with pytest.raises(error, match="grad_tolerance must be"):
        patch(model, grad_tolerance=tolerance)
    assert vars(model) == before


def test_another_device_is_refused_at_once(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SYNCHRONOUS", frozenset())
    with pytest.raises(NotImplementedError, match="the sampled backward runs on a CPU"):
        patch(model, grad_tolerance=0.1)
    assert isinstance(patch(model, grad_tolerance="dtype"), Patch)  # float32: exact
