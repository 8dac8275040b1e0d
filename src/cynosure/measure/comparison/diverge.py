"""Compute the exact divergence of two models with one tokenizer over the same windows."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import tee, zip_longest
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cynosure.measure.comparison.align import COLUMNS, Floats, Side
from cynosure.measure.comparison.comparison import Comparison, Divergence, compare_sides
from cynosure.measure.comparison.tally import grouped
from cynosure.measure.results.figures import Figure
from cynosure.measure.scoring.batching import BatchRow, batches, rows_of
from cynosure.measure.scoring.corpus import Corpus
from cynosure.measure.scoring.score import make_cutting, setting
from cynosure.measure.scoring.scorer import Say, Scorer, UnitColumns, reporting
from cynosure.measure.scoring.units import Cutting, Task, units
from cynosure.measure.statistics.bootstrap import BASE_TOKENS, choose, interval
from cynosure.measure.storage.rows import DocumentFacts, Ints, numbers
from cynosure.models import Head, SplitModel, split

LOGITS = 2**24  # logits of each model at a time: 64 MB in float32
BLOCK = 2**19  # of these at a time in float64, so that they stay in the cache
WAY_OUT = "score each with `out` and compare the runs, which needs no common tokenizer"


def diverge(
    model_a: Any,
    model_b: Any,
    texts: Corpus | Iterable[Any],
    *,
    protocol: str = "sliding",
    window: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    special: str = "auto",
    chat: str = "assistant",
    batch_tokens: int | None = None,
    progress: Say | bool | None = None,
    **reading: Any,
) -> Comparison:
    """Compare two models with one tokenizer, and compute their divergence, in one pass over the texts.

    The divergence KL(A || B) of each token covers the whole vocabulary. Only the logits of a few tokens at a time are
    in memory.

    Args:
        model_a: the baseline, a model as in `score`.
        model_b: the model to compare with it.
        texts: as in `score`.
        protocol: as in `score`.
        window: as in `score`. By default the smaller of the two models' windows.
        stride: as in `score`.
        bos: as in `score`.
        special: as in `score`.
        chat: as in `score`.
        batch_tokens: as in `score`.
        progress: as in `score`.
        reading: as in `score`.

    Returns:
        The comparison, with `divergence`.

    Raises:
        ValueError: the vocabularies or the tokens of a text differ, or for the reasons of `score` and `compare`.

    Example:
        >>> comparison = diverge("smollm2", "smollm2", ["the cat sat on the mat. " * 20])
        >>> comparison.divergence.mean, comparison.agreement.top1_agreement
        (Figure(value=0.0, low=0.0, high=0.0), 1.0)
    """
    corpus = Corpus.of_texts(texts, **reading)
    a, b = (model if isinstance(model, SplitModel) else split(model) for model in (model_a, model_b))
    check_vocabularies(a, b)
    options = {"bos": bos, "special": special, "chat": chat}
    cuttings = [make_cutting(model, protocol, window, stride, batch_tokens, **options) for model in (a, b)]
    cutting = min(cuttings, key=lambda cutting: cutting.window)
    check_same_bos(*cuttings)
    of_a, of_b = (
        units(model.tokenizer, documents, cutting)
        for model, documents in zip((a, b), tee(corpus.documents), strict=True)
    )
    scored: list[Scored] = []
    with reporting(progress) as say:
        pair = Pair(Scorer(a, cutting, 0), Scorer(b, cutting, 0), say)
        for (tasks, facts), (others, _) in zip(of_a, of_b, strict=False):
            check_same_tokens(tasks, others)
            scored.append(pair.score(tasks, facts))
    comparison = pair.together(scored)
    return replace(comparison, notes=(*comparison.notes, *corpus.notes))


def check_vocabularies(a: SplitModel, b: SplitModel) -> None:
    """Raise ValueError if an id is not the same token in both models."""
    size_a, size_b = len(a.head.weight), len(b.head.weight)
    if size_a != size_b:
        raise ValueError(f"the vocabularies of A and B have {size_a:,} and {size_b:,} tokens: {WAY_OUT}")
    names_a, names_b = ({i: name for name, i in model.tokenizer.get_vocab().items()} for model in (a, b))
    for i in sorted(names_a.keys() & names_b.keys()):
        if names_a[i] != names_b[i]:
            raise ValueError(f"token {i} is {names_a[i]!r} to A and {names_b[i]!r} to B: {WAY_OUT}")


def check_same_bos(a: Cutting, b: Cutting) -> None:
    """Raise ValueError if the two models expect windows that begin differently."""
    if a.bos != b.bos:
        raise ValueError(
            f"A's rule for BOS is {a.bos!r} and B's is {b.bos!r}: give `bos='every'`, 'first' or 'none' for both"
        )


def check_same_tokens(tasks: list[Task], others: list[Task]) -> None:
    """Raise ValueError if the two models would see or predict different tokens."""
    for task, other in zip_longest(tasks, others):
        if task is None or other is None or given(task) != given(other):
            name = (task or other).text.facts.name
            raise ValueError(f"the tokenizers of A and B make different tokens of {name}: {WAY_OUT}")


def given(task: Task) -> tuple[Any, ...]:
    """Return all that a model gets of a window."""
    text, window = task.text, task.window
    return task[1:], text.lead, text.first, text.x[window.see_start : window.see_stop + 1].tolist()


class Scored(NamedTuple):
    """A unit scored by both models: what a comparison needs, and the divergence of each scored token."""

    a: pa.Table
    b: pa.Table
    facts: list[DocumentFacts]
    key: Ints  # of each scored token: (document << 32) + its place there
    kl_nats: Floats


class Pair(NamedTuple):
    """Two models that score the same windows."""

    a: Scorer
    b: Scorer
    say: Say

    def score(self, tasks: list[Task], facts: list[DocumentFacts]) -> Scored:
        """Score a unit with both models, batch by batch."""
        of_a, of_b = (UnitColumns.of(tasks, scorer.topk) for scorer in (self.a, self.b))
        kl_nats = np.zeros(len(of_a.scored))
        for batch in batches(rows_of(tasks), self.a.cutting.batch_tokens):
            at = np.concatenate([row.scored for row in batch])
            kl_nats[at] = self.score_batch(batch, of_a, of_b)
        a, b = self.a.shard(tasks, facts, of_a).table, self.b.shard(tasks, facts, of_b).table
        document, place = (numbers(a, name).astype(np.int64) for name in ("document", "index"))
        key, scored = (document << 32) + place, of_a.scored
        return Scored(a.select(COLUMNS), b.select(COLUMNS), facts, key[scored], kl_nats[scored])

    def score_batch(self, batch: list[BatchRow], of_a: UnitColumns, of_b: UnitColumns) -> Floats:
        """Write the statistics of a batch into the columns of A and B, and return its divergences."""
        (hidden_a, target), (hidden_b, _) = self.a.states(batch), self.b.states(batch)
        self.say(self.a.put(batch, hidden_a, target, of_a))
        self.b.put(batch, hidden_b, target, of_b)
        kl_nats: Floats = divergences(hidden_a, self.a.model.head, hidden_b, self.b.model.head).cpu().numpy()
        return kl_nats

    def together(self, units: list[Scored]) -> Comparison:
        """Compare the two models over all units."""
        facts = {fact.document: fact for unit in units for fact in unit.facts}
        sides = (
            Side.of_tables(setting(scorer), facts, tables)
            for scorer, tables in ((self.a, [unit.a for unit in units]), (self.b, [unit.b for unit in units]))
        )
        return replace(compare_sides(*sides), divergence=summarise(units))


@torch.inference_mode()
def divergences(hidden_a: Tensor, head_a: Head, hidden_b: Tensor, head_b: Head) -> Tensor:
    """Compute KL(A || B) of each row of hidden states, (n, D_a) and (n, D_b) -> (n,) float64, nats.

    It is the sum over v of p_a(v) (log p_a(v) - log p_b(v)), without terms whose p_a(v) is 0. It is infinite if B gives
    probability 0 to a token that A does not. The logits have the models' dtype; the rest is float64.

    >>> hidden, identity = torch.eye(2)[:1], torch.eye(2)
    >>> heads = Head(identity, None, 1.0, None), Head(0 * identity, None, 1.0, None)
    >>> round(divergences(hidden, heads[0], hidden, heads[1]).item(), 4)  # ln 2 - entropy of (0.731, 0.269)
    0.1109
    """
    n_rows, parts = max(1, LOGITS // len(head_a.weight)), []
    for start in range(0, len(hidden_a), n_rows):
        at = slice(start, start + n_rows)
        parts.append(divergences_of_logits(head_a.logits(hidden_a[at]), head_b.logits(hidden_b[at])))
    return torch.cat(parts)


def divergences_of_logits(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Do the same from logits, (r, V) and (r, V) -> (r,)."""
    n_rows, parts = max(1, BLOCK // z_a.shape[-1]), []
    for start in range(0, len(z_a), n_rows):
        log_a, log_b = (z[start : start + n_rows].double().log_softmax(-1) for z in (z_a, z_b))
        p = log_a.exp()
        terms = torch.where(p > 0, p * (log_a - log_b), 0.0)
        parts.append(terms.sum(-1).clamp_(min=0))  # below 0 only by rounding
    return torch.cat(parts)


def summarise(units: list[Scored]) -> Divergence:
    """Summarize the divergences of the tokens. The interval of their mean is made like that of a run's loss."""
    kl_nats = np.concatenate([unit.kl_nats for unit in units])
    keys, base = grouped(np.concatenate([unit.key for unit in units]) // BASE_TOKENS, [kl_nats, np.ones(len(kl_nats))])
    document = keys // (2**32 // BASE_TOKENS)
    method, clusters = choose(grouped(document, list(base))[1].T, base.T, document)
    mean = interval(*clusters.T, seed=method.seed, n_resamples=method.n_resamples)
    p99 = float(np.quantile(kl_nats, 0.99, method="inverted_cdf"))  # does not interpolate towards an infinite one
    return Divergence(len(kl_nats), Figure(*mean[:3]), float(np.median(kl_nats)), p99, float(kl_nats.max()), method)
