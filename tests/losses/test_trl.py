"""Each loss equals TRL's, from the methods of its trainers on stand-ins for a trainer and a model."""

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from cynosure import losses

pytestmark = pytest.mark.exhaustive  # importing trl's trainers takes seconds
B, T = 6, 8
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def trl():
    """TRL's trainers, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its experimental modules
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.gkd import GKDTrainer
        from trl.experimental.orpo import ORPOTrainer
        from trl.trainer.dpo_trainer import DPOTrainer
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.kto_trainer import KTOTrainer
        from trl.trainer.rloo_trainer import RLOOTrainer
    return SimpleNamespace(
        cpo=CPOTrainer, orpo=ORPOTrainer, dpo=DPOTrainer, gkd=GKDTrainer, grpo=GRPOTrainer, kto=KTOTrainer,
        rloo=RLOOTrainer,
    )  # fmt: skip


def trainer(trl_class, **attributes):
    """A stand-in with the attributes that `_compute_loss` reads, in evaluation and in one process."""
    same = SimpleNamespace(
        device="cpu", num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )
    stub = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=same, aux_loss_enabled=False, args=SimpleNamespace(),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, precompute_ref_logps=True,
    )  # fmt: skip
    vars(stub).update(attributes)
    return SimpleNamespace(loss=lambda *given: trl_class._compute_loss(stub, *given))


@pytest.fixture
def tokens():
    """Log-probabilities of sampled tokens of three models, and which of them count; one text has one token."""
    generator = torch.Generator().manual_seed(0)
    model = -torch.rand(B, T, generator=generator) * 3 - 0.01
    old, ref = (model - 0.6 * torch.rand(B, T, generator=generator) + 0.01 for _ in range(2))
    lengths = torch.tensor([T, 1, 5, 3, T, 2])
    mask = (torch.arange(T) < lengths[:, None]).long()
    rewards = torch.randn(B, generator=generator)
    return SimpleNamespace(model=model.requires_grad_(), old=old, ref=ref, mask=mask, advantages=rewards)


def assert_same(ours, theirs, *leaves):
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for mine, other in zip(
        *(torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(mine, other, **CLOSE)


def pairs(tokens, average=False):
    """Sequence log-probabilities of the model and of the reference: the first half is chosen."""
    ours, ref = (losses.sequence_logprobs(x, tokens.mask, average) for x in (tokens.model, tokens.ref))
    return *ours.chunk(2), *ref.chunk(2)


@pytest.mark.parametrize(
    ("variant", "smoothing"), [("sigmoid", 0.0), ("hinge", 0.0), ("ipo", 0.0), ("robust", 0.1), ("robust", 0.0)]
)
def test_dpo(trl, tokens, variant, smoothing):
    mask = torch.cat([torch.zeros(B, 1, dtype=torch.long), tokens.mask], 1)  # a prompt of one token
    ones = torch.ones(B, T)
    outputs = SimpleNamespace(
        log_probs=tokens.model * tokens.mask, entropy=ones, mean_logits=ones, is_top1=ones.bool(), log_sum_sq_probs=ones
    )
    ref_chosen, ref_rejected = pairs(tokens)[2:]
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"ref_chosen_logps": ref_chosen, "ref_rejected_logps": ref_rejected}
    theirs = trainer(
        trl.dpo, ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[variant], loss_weights=[1.0], beta=0.3,
        label_smoothing=smoothing, use_weighting=False,
    ).loss(lambda **_: outputs, inputs, False)  # fmt: skip
    given = pairs(tokens, average=variant == "ipo")
    ours = losses.dpo_loss(*given, beta=0.3, variant=variant, label_smoothing=smoothing)
    assert_same(ours, theirs, tokens.model)


def cpo(trl, kind, beta, gamma=0.0, smoothing=0.0):
    device = SimpleNamespace(device="cpu")
    stub = SimpleNamespace(
        alpha=0.0, accelerator=device, loss_type=kind, beta=beta, simpo_gamma=gamma, label_smoothing=smoothing
    )
    return lambda chosen, rejected: trl.cpo.cpo_loss(stub, chosen, rejected)[0].mean()


def test_simpo(trl, tokens):
    chosen, rejected, *_ = pairs(tokens, average=True)
    theirs = cpo(trl, "simpo", 2.0, 0.5, 0.1)(chosen, rejected)
    ours = losses.simpo_loss(chosen, rejected, beta=2.0, gamma=0.5, label_smoothing=0.1)
    assert_same(ours, theirs, tokens.model)


@pytest.mark.parametrize(("variant", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0.0)])
def test_cpo(trl, tokens, variant, smoothing):
    chosen, rejected, *_ = pairs(tokens)
    nll = losses.sequence_kd_loss(tokens.model[: B // 2], tokens.mask[: B // 2])
    theirs = cpo(trl, variant, 0.2, smoothing=smoothing)(chosen, rejected) + 0.7 * nll  # of get_batch_loss_metrics
    ours = losses.cpo_loss(chosen, rejected, nll, beta=0.2, alpha=0.7, variant=variant, label_smoothing=smoothing)
    assert_same(ours, theirs, tokens.model)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gkd(trl, beta):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, size, generator=generator) for size in (8, 12))
    of_student, of_teacher = (torch.randn(31, size, generator=generator) / size**0.5 for size in (8, 12))
    mask, leaves = torch.rand(2, 5, generator=generator) < 0.6, (student.requires_grad_(), of_student.requires_grad_())
    labels = torch.where(mask, 0, -100)[:, 1:]
    logits = student @ of_student.mT, teacher @ of_teacher.mT
    theirs = trl.gkd.generalized_jsd_loss(*(x[:, :-1] for x in logits), labels, beta=beta, temperature=1.7)
    ours = losses.gkd_loss(student, of_student, teacher, of_teacher, mask, beta=beta, temperature=1.7, shift=1)
    assert_same(ours, theirs, *leaves)


def test_orpo(trl, tokens):
    chosen, rejected, *_ = pairs(tokens, average=True)
    nll = losses.sequence_kd_loss(tokens.model[: B // 2], tokens.mask[: B // 2])
    stub = SimpleNamespace(beta=0.2, accelerator=SimpleNamespace(device="cpu"))
    theirs = nll - trl.orpo.odds_ratio_loss(stub, chosen, rejected)[0].mean()
    assert_same(losses.orpo_loss(chosen, rejected, nll, beta=0.2), theirs, tokens.model)


@pytest.mark.parametrize("gain", [1.0, -1.0])
@pytest.mark.parametrize("desirable", [[1, 0, 1, 1, 0, 0], [1] * B, [0] * B])
def test_kto(trl, tokens, gain, desirable):
    mask = torch.cat([torch.zeros(B, 1, dtype=torch.long), tokens.mask], 1)
    ones, label = torch.ones(B, T), torch.tensor(desirable).bool()
    outputs = SimpleNamespace(log_probs=tokens.model * tokens.mask, entropy=ones, mean_logits=ones)
    logprobs, ref = (losses.sequence_logprobs(x, tokens.mask) for x in (tokens.model, tokens.ref))
    kl, ref_kl = ref.flip(0) + gain * 0.4, ref.flip(0)
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}
    inputs |= {"label": label, "ref_logps": ref, "ref_KL_logps": ref_kl}
    theirs = trainer(
        trl.kto, calculate_KL=True, loss_type="kto", beta=0.2, desirable_weight=1.2, undesirable_weight=0.9,
        _compute_kl_logps=lambda model, batch: kl,
    ).loss(lambda **_: outputs, inputs, False)  # fmt: skip
    ours = losses.kto_loss(
        logprobs, ref, label, kl, ref_kl, beta=0.2, desirable_weight=1.2, undesirable_weight=0.9
    )  # fmt: skip
    assert_same(ours, theirs, tokens.model)


def policy_inputs(tokens):
    prompt = torch.ones(B, 1, dtype=torch.long)
    inputs = {"prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": tokens.mask}
    inputs |= {"completion_mask": tokens.mask, "advantages": tokens.advantages, "old_per_token_logps": tokens.old}
    return inputs | {"ref_per_token_logps": tokens.ref, "num_items_in_batch": torch.tensor(40.0)}


def policy_trainer(trl_class, tokens, **attributes):
    logprobs = lambda *_, **__: (tokens.model, torch.ones(B, T), None)  # noqa: E731
    return trainer(
        trl_class, _get_per_token_logps_and_entropies=logprobs, epsilon_low=0.2, epsilon_high=0.28, **attributes
    )


@pytest.mark.parametrize("delta", [None, 1.4])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("importance", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dapo", "dr_grpo", "luspo"])
def test_grpo(trl, tokens, kind, importance, beta, delta):
    stub = policy_trainer(
        trl.grpo, tokens, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
        importance_sampling_level=importance, beta=beta, loss_type=kind, use_vllm=False,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False),
        max_completion_length=16, _entropy_bonus_enabled=False,
    )  # fmt: skip
    theirs = stub.loss(None, policy_inputs(tokens))
    ours = losses.grpo_loss(
        tokens.model, tokens.old, tokens.advantages, tokens.mask, epsilon_low=0.2, epsilon_high=0.28, delta=delta,
        beta=beta, ref_logprobs=tokens.ref, importance=importance, aggregate="dapo" if kind == "bnpo" else kind,
        normalizer=40.0 if kind == "dapo" else None, max_completion_length=16 if kind == "dr_grpo" else None,
    )  # fmt: skip
    assert_same(ours, theirs, tokens.model)


def test_rloo(trl, tokens):
    inputs = policy_inputs(tokens) | {"old_logps": (tokens.old * tokens.mask).sum(1)}
    theirs = policy_trainer(trl.rloo, tokens).loss(None, inputs)
    ours = losses.rloo_loss(
        tokens.model, tokens.old, tokens.advantages, tokens.mask, epsilon_low=0.2, epsilon_high=0.28
    )  # fmt: skip
    assert_same(ours, theirs, tokens.model)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages(trl, tokens, scale):
    """TRL's are inside the method that generates: these are its lines for it."""
    from trl.trainer.utils import nanstd

    rewards = tokens.advantages.clone()
    rewards[1] = torch.nan
    grouped = rewards.view(-1, 3)
    spread = nanstd(grouped, dim=1).repeat_interleave(3) if scale == "group" else nanstd(rewards).expand_as(rewards)
    theirs = rewards - torch.nanmean(grouped, dim=1).repeat_interleave(3)
    theirs = torch.nan_to_num(theirs if scale == "none" else theirs / (spread + 1e-4), nan=0.0)
    torch.testing.assert_close(losses.group_advantages(rewards, 3, scale=scale), theirs, **CLOSE)
