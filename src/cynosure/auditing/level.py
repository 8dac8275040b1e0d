"""Compare the level of a loss with ln V, the loss of a uniform guess over V tokens."""

import math
from typing import Any

import torch
from torch import Tensor

from cynosure.auditing.batch import pulled
from cynosure.auditing.findings import Report
from cynosure.auditing.labels import TextRows
from cynosure.auditing.loss import Compared

MARGIN = 1.0  # nats: the loss of a uniform guess over e times as many tokens
STD = 0.02  # the standard deviation of weights that transformers initializes


def check_level(compared: list[Compared], rows: list[TextRows], model: Any, fresh: bool | None, report: Report) -> None:
    """Check that the mean loss of the text is near ln V in a fresh model, and not above it in any other.

    The tolerance is one nat and three standard errors, plus the cost of the initialization in a fresh model.
    """
    nats = torch.cat([one.right.nats[text_targets(one, row)] for one, row in zip(compared, rows, strict=True)])
    if len(nats) < 2 or not bool(nats.isfinite().all()):
        report.made("loss against ln V", "not made: fewer than two labelled tokens of text, or a loss is not finite")
        return
    mean, spread = float(nats.mean()), 3 * float(nats.std()) / math.sqrt(len(nats))
    n_classes = compared[0].right.n_classes
    knows_nothing, new = math.log(n_classes), looks_fresh(model) if fresh is None else fresh
    allowed = MARGIN + spread + (initial_cost(model, n_classes) if new else 0.0)
    kind = "fresh" if new else "trained"
    result = f"{mean:.4f} nats over {len(nats):,} tokens, ln {n_classes:,} is {knows_nothing:.4f}"
    report.made("loss against ln V", f"{result}; the model {'is' if fresh is not None else 'looks'} {kind}")
    above, below = mean - knows_nothing > allowed, knows_nothing - mean > allowed
    if new and (above or (below and fresh)):
        report.find("fresh-loss-off", f"{result}: off by {mean - knows_nothing:+.4f}, a fresh model may be off by "
                    f"{allowed:.2f}")  # fmt: skip
    elif above:
        report.find("above-ln-v", f"{result}: off by {mean - knows_nothing:+.4f}, a model may be off by {allowed:.2f}")


def text_targets(one: Compared, row: TextRows) -> Tensor:
    """Return where the labelled targets are text and not padding, (B, T) bool."""
    is_text = row.real if one.batch.ahead == 1 else pulled(row.real, 1, False)
    return one.right.counted & is_text


def looks_fresh(model: Any) -> bool:
    """Whether each norm weight and each bias still has equal elements, which training would change."""
    vectors = [p for p in model.parameters() if p.ndim == 1 and p.numel() > 1 and not p.is_meta]  # meta: offloaded
    return bool(vectors) and all(bool((p == p[0]).all()) for p in vectors)


def initial_cost(model: Any, n_classes: int) -> float:
    """Return how far transformers' initialization can raise the loss above ln V: at most ln(1/V sum e^z).

    Logits of normalized hidden states (D,) have a standard deviation s of 0.02 sqrt(D), which costs s^2 / 2. If the
    head is tied to the embedding, the logit of the token just read may reach 0.02 D.
    """
    config = model.config.get_text_config()
    size = int(config.hidden_size)
    own = STD * size if config.tie_word_embeddings else 0.0
    return STD**2 * size / 2 + math.log1p(math.exp(min(own, 700.0)) / n_classes)
