"""Every public name as a user of cynosure writes it: type checkers read this file, nothing runs it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import assert_type

import cynosure
from cynosure import CrossEntropyLoss, LinearCrossEntropyLoss, Meter, TrainSettings, Watcher
from cynosure.losses import dpo_loss

hidden, weight = torch.randn(2, 8, 4), torch.randn(100, 4)
logits, target = hidden @ weight.T, torch.randint(100, (2, 8))


def losses() -> None:
    assert_type(cynosure.linear_cross_entropy(hidden, weight, target, shift=1, softcap=30.0), Tensor)
    assert_type(cynosure.linear_cross_entropy(hidden, weight, (target[..., None], logits[..., :1])), Tensor)
    assert_type(cynosure.cross_entropy(logits, target, reduction="none", normalizer=logits.sum()), Tensor)
    assert_type(cynosure.token_logprobs(hidden, weight, target, backend="torch"), Tensor)
    models = hidden, weight, hidden, weight
    assert_type(cynosure.linear_kl_div(*models, direction="jsd", beta=0.1, token_weight=hidden[..., 0]), Tensor)
    assert_type(cynosure.linear_topk_kl_div(hidden, weight, target[..., None], logits[..., :1], tail="bucket"), Tensor)
    with cynosure.record_sampling() as records:
        cynosure.linear_cross_entropy(hidden, weight, target, grad_tolerance="dtype", generator=torch.Generator())
        cynosure.token_logprobs(hidden, weight, target, grad_tolerance=0.01, generator=None)
    assert_type(records, list[cynosure.SampledBackward])
    assert_type(cynosure.logits_token_logprobs(logits, target), Tensor)
    both = cynosure.token_logprobs(hidden, weight, target[..., None], entropy=True, temperature=0.7)
    assert_type(both, cynosure.TokenLogprobs)
    assert_type(cynosure.logits_token_logprobs(logits, target, entropy=True).entropy, Tensor)
    cynosure.token_logprobs(hidden, weight, target, entropy=hidden is logits)
    head_loss: Tensor = LinearCrossEntropyLoss(shift=1)(hidden, weight, target)
    assert_type(LinearCrossEntropyLoss().forward(hidden, weight, target, bias=None), Tensor)
    assert_type(CrossEntropyLoss(class_weight=head_loss).forward(logits, target), Tensor)
    torch.nn.Sequential(CrossEntropyLoss())


def post_training() -> None:
    logprobs = cynosure.token_logprobs(hidden, weight, target, shift=1)
    mask = target[:, 1:] > 0
    sequences = cynosure.losses.sequence_logprobs(logprobs, mask, average=True)
    assert_type(dpo_loss(sequences, sequences, sequences, sequences, variant="ipo"), Tensor)
    advantages = cynosure.losses.group_advantages(sequences, 2, scale="none")
    assert_type(cynosure.losses.grpo_loss(logprobs, logprobs, advantages, mask, aggregate="grpo"), Tensor)


def statistics() -> None:
    stats = cynosure.token_stats(hidden, weight, target, topk=5, temperatures=[1.0])
    assert_type(stats, cynosure.TokenStats)
    assert_type(cynosure.logits_token_stats(logits, target), cynosure.TokenStats)
    assert_type(stats.entropy, Tensor)
    meter = Meter()
    meter.update(stats, n_bytes=target)
    assert_type(meter.gather(), Meter)
    assert_type(meter.compute(), dict[str, float])


def plans() -> None:
    plan = cynosure.explain(4096, 1024, 50_000, dtype=torch.bfloat16)
    assert_type(plan, cynosure.Plan)
    assert_type(plan.chunk_tokens, int)
    assert_type([status.name for status in cynosure.backends("cpu") if not status.available], list[str])


def patching(model: Any, trainer: Any, ids: Tensor) -> None:
    with cynosure.patch(model) as patched:
        assert_type(patched, cynosure.Patch | cynosure.TrainerPatch)
        if isinstance(patched, cynosure.Patch):
            assert_type(patched.fused, int)
    cynosure.patch(trainer, example={"input_ids": ids})
    cynosure.unpatch(trainer)
    assert_type(cynosure.causal_lm_loss(model, ids, normalizer=8), Tensor)


def auditing(model: Any, ids: Tensor) -> None:
    audit = cynosure.audit(model, [{"input_ids": ids, "labels": ids}], loss_fn=lambda *_: ids.sum())
    assert_type(audit, cynosure.Audit)
    assert_type([finding.fix for finding in audit.findings], list[str])
    assert_type(all(check.passed for check in cynosure.check(model, ids)), bool)


def measuring(folder: Path) -> None:
    model = cynosure.load("smollm2", dtype="float32")
    assert_type(model, cynosure.LanguageModel)
    scores = cynosure.score(model, [folder, "a text", cynosure.Document("name", "text")], out=folder, errors="replace")
    assert_type(scores, cynosure.Scores)
    assert_type(scores.figures["bits_per_byte"].low, float | None)
    assert_type(cynosure.report(folder), Path)
    assert_type(cynosure.report(scores, str(folder), out="report.html", figures=folder), Path)
    assert_type(scores.statistics, cynosure.Statistics)
    assert_type(scores.to_json(), dict[str, Any])
    comparison = cynosure.compare(scores, cynosure.open_run(str(folder)))
    assert_type(comparison, cynosure.Comparison)
    assert_type(comparison.changes["bits_per_byte"].difference.value, float | None)
    prediction = cynosure.predict(model, "The quick brown", truth=" fox")
    assert_type(prediction, cynosure.Prediction)
    assert_type(prediction.top[0].probability, float)


class Printing(Watcher):
    def step(self, figures: dict[str, Any]) -> None:
        print(figures["loss"])


def training(folder: Path) -> None:
    try:
        trained = cynosure.train(["a text"], folder, TrainSettings(preset="tiny", tokens=1000), watcher=Printing())
    except cynosure.Diverged as error:
        assert_type(error.args, tuple[Any, ...])
        return
    assert_type(trained, cynosure.Trained)
    assert_type(trained.model_folder, Path)
    assert_type(trained.scores, cynosure.Scores | None)
    assert_type(cynosure.__version__, str)


def wrong(model: Any) -> None:
    """A checker that understands cynosure reports each line that ends in `# wrong`."""
    cynosure.linear_cross_entropy(1)  # wrong
    cynosure.linear_cross_entropy(hidden, weight, target, reduction="average")  # wrong
    cynosure.cross_entropy(logits, target, smoothing=0.1)  # wrong
    assert_type(cynosure.token_stats(hidden, weight, target), Tensor)  # wrong
    cynosure.token_stats(hidden, weight, target).perplexity  # wrong  # noqa: B018
    cynosure.token_logprobs(hidden, weight, target).entropy  # wrong  # noqa: B018
    cynosure.score(model, ["a text"], windows=512).tokens = "many"  # wrong
    cynosure.load(model, dtype=torch.float32)  # wrong
    TrainSettings(token=1000)  # wrong
    cynosure.patch(model).undone()  # wrong
    cynosure.entropy(hidden)  # wrong
    cynosure.losses.grpo_loss(hidden, hidden, hidden, hidden, aggregate="mean")  # wrong
    cynosure.losses.dpo(hidden)  # wrong
