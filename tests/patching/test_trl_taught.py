"""TRL's trainers that learn from a teacher: patched, evaluated, restored and refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.trainer import distillation_trainer

import cynosure
from cynosure.patching import patch
from tests.patching.test_trl_others import WITH_A_TEACHER, trainer_of

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's own


def taught(name: str, folder: Path) -> Any:
    torch.manual_seed(0)
    trainer = trainer_of(WITH_A_TEACHER[name], folder, None)
    trainer.eval_dataset = trainer.train_dataset.select(range(3))
    return trainer


def attributes(trainer: Any) -> list[set[str]]:
    return [set(vars(part)) for part in (trainer, trainer.model, trainer.teacher_model)]


def evaluated(trainer: Any) -> list[float]:
    torch.manual_seed(1)
    found = trainer.evaluate()
    return [found[name] for name in ("eval_loss", "eval_entropy") if name in found]


@pytest.mark.parametrize("name", ["distillation", "GKD"])
def test_evaluation_and_its_end(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = taught(name, tmp_path)
    own, before = evaluated(trainer), attributes(trainer)  # TRL leaves a forward on the model
    with patch(trainer, head_dtype=torch.float64) as handle:
        assert handle is patch(trainer)
        assert handle.reference_patch.head_dtype == torch.float64
        with monkeypatch.context() as context:
            context.setattr(ChunkedDivergenceFunction, "apply", None)
            assert evaluated(trainer) == pytest.approx(own, rel=1e-5)
        assert handle.model_patch.made_by == handle.reference_patch.made_by == []
        cynosure.unpatch(trainer)
        assert attributes(trainer) == before
        assert evaluated(trainer) == own
    with pytest.raises(ValueError, match=r"cannot be patched: .* is not sampled: leave out grad_tolerance"):
        patch(trainer, grad_tolerance=0.1)


def test_a_divergence_that_is_not_known_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = taught("distillation", tmp_path)
    before, own = attributes(trainer), distillation_trainer._chunked_divergence_loss

    def doubled(*args: Any, **kwargs: Any) -> Any:
        loss, *others = own(*args, **kwargs)
        return 2 * loss, *others

    def alone(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs)[:1]

    def numbers(*args: Any, **kwargs: Any) -> Any:
        return tuple(x.item() for x in own(*args, **kwargs))

    for function in (doubled, alone, numbers, lambda hidden: hidden, None):
        with monkeypatch.context() as context:
            context.setattr(distillation_trainer, "_chunked_divergence_loss", function)
            with pytest.raises(ValueError, match=r"its divergence is not that of TRL 1\.16: train it unpatched"):
                patch(trainer)
    assert attributes(trainer) == before
    trainer._compute_loss = lambda *args: own
    with pytest.raises(ValueError, match=r"its divergence is not that of TRL 1\.16: train it unpatched"):
        patch(trainer)
    trainer = taught("GKD", tmp_path)
    own_jsd, logits = trainer.generalized_jsd_loss, torch.randn(2, 3, 7)
    with patch(trainer):  # a caller's own logits, and a reduction of every class
        for reduction in ("batchmean", "none"):
            given = {"student_logits": logits, "teacher_logits": 2 * logits, "reduction": reduction}
            assert torch.equal(trainer.generalized_jsd_loss(**given), own_jsd(**given))
    trainer.generalized_jsd_loss = lambda *args, **kwargs: 2 * own_jsd(*args, **kwargs)
    with pytest.raises(ValueError, match=r"its divergence is not that of TRL 1\.16: train it unpatched"):
        patch(trainer)
    trainer.teacher_model = None
    with pytest.raises(ValueError, match="it has no teacher model: train it unpatched"):
        patch(trainer)
