"""The height of a loss against ln V, the loss of knowing nothing."""

import math
from typing import Any

import torch
from torch import Tensor

from cynosure.auditing.batch import AuditBatch, pulled
from cynosure.auditing.findings import Report
from cynosure.auditing.labels import TextRows
from cynosure.auditing.loss import Compared

MARGIN = 1.0  # nats: e times as many equal choices
STD = 0.02  # of weights as transformers initialises them


def check_level(compared: list[Compared], rows: list[TextRows], model: Any, fresh: bool | None, report: Report) -> None:
    """The mean loss of the text against ln V: near it in a fresh model, not above it in any other.

    Allowed are a nat and three standard errors; in a fresh model also what its initialisation costs.
    """
    nats = torch.cat([one.right.nats[asked(one, row)] for one, row in zip(compared, rows, strict=True)])
    if len(nats) < 2 or not bool(nats.isfinite().all()):
        report.made("loss against ln V", "not made: fewer than two tokens of text are labelled, or have a finite loss")
        return
    mean, spread = float(nats.mean()), 3 * float(nats.std()) / math.sqrt(len(nats))
    n_classes = compared[0].right.n_classes
    knows_nothing, new = math.log(n_classes), looks_fresh(model) if fresh is None else fresh
    allowed = MARGIN + spread + (initial_cost(model, n_classes) if new else 0.0)
    kind = "fresh" if new else "trained"
    figures = f"{mean:.4f} nats over {len(nats):,} tokens, ln {n_classes:,} is {knows_nothing:.4f}"
    report.made("loss against ln V", f"{figures}; the model {'is' if fresh is not None else 'looks'} {kind}")
    above, below = mean - knows_nothing > allowed, knows_nothing - mean > allowed
    if new and (above or (below and fresh)):
        report.find("fresh-loss-off", f"{figures}: {mean - knows_nothing:+.4f}, of which a fresh model may have "
                    f"{allowed:.2f}")  # fmt: skip
    elif above:
        report.find("above-ln-v", f"{figures}: {mean - knows_nothing:+.4f}, allowed are {allowed:.2f}")


def asked(one: Compared, row: TextRows) -> Tensor:
    """The targets that are text, whatever the labels say of padding; (B, T) bool."""
    return one.right.counted & text_targets(one.batch, row)


def text_targets(batch: AuditBatch, row: TextRows) -> Tensor:
    return row.real if batch.ahead == 1 else pulled(row.real, 1, False)


def looks_fresh(model: Any) -> bool:
    """Whether every weight of a norm and every bias is still one number throughout, as no training leaves them."""
    vectors = [p for p in model.parameters() if p.ndim == 1 and p.numel() > 1 and not p.is_meta]  # which is offloaded
    return bool(vectors) and all(bool((p == p[0]).all()) for p in vectors)


def initial_cost(model: Any, n_classes: int) -> float:
    """What transformers' initialisation costs beyond ln V, at most: ln(1/V sum e^z).

    Logits of normed hidden states (D,) have a standard deviation s of 0.02 sqrt(D), which costs s^2 / 2; where the
    head is the embedding too, the logit of the token just read may reach 0.02 D.
    """
    config = model.config.get_text_config()
    size = int(config.hidden_size)
    own = STD * size if config.tie_word_embeddings else 0.0
    return STD**2 * size / 2 + math.log1p(math.exp(min(own, 700.0)) / n_classes)
