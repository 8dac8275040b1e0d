"""Two models with one tokenizer over the same windows: how far their distributions are apart, exactly."""

from collections.abc import Iterable, Sequence
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

LOGITS = 2**24  # of each model at a time: 64 MB in float32
BLOCK = 2**19  # of those at a time in float64, while they are in the cache
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
    """Compare two models with one tokenizer in one pass over the texts: what `compare` says, and their divergence.

    No logits are kept: those of a few tokens at a time become the divergence KL(A || B) of each, over the whole
    vocabulary.

    Args:
        model_a: the baseline, as of `score`.
        model_b: what is compared with it.
        texts: as of `score`.
        protocol: as of `score`.
        window: as of `score`. By default the smaller of the two models'.
        stride: as of `score`.
        bos: as of `score`.
        special: as of `score`.
        chat: as of `score`.
        batch_tokens: as of `score`.
        progress: as of `score`.
        reading: as of `score`.

    Returns:
        The comparison, with `divergence`.

    Raises:
        ValueError: the vocabularies differ in size or meaning, the tokenizers cut a text differently, or `score` or
            `compare` would refuse.

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
    found: list[Scored] = []
    with reporting(progress) as say:
        pair = Pair(Scorer(a, cutting, 0), Scorer(b, cutting, 0), say)
        for (tasks, facts), (others, _) in zip(of_a, of_b, strict=False):
            check_same_tokens(tasks, others)
            found.append(pair.score(tasks, facts))
    comparison = pair.together(found)
    return replace(comparison, notes=(*comparison.notes, *corpus.notes))


def check_vocabularies(a: SplitModel, b: SplitModel) -> None:
    """ValueError where an id does not mean the same token to both models."""
    size_a, size_b = len(a.head.weight), len(b.head.weight)
    if size_a != size_b:
        raise ValueError(f"the vocabularies of A and B have {size_a:,} and {size_b:,} tokens: {WAY_OUT}")
    names_a, names_b = ({i: name for name, i in model.tokenizer.get_vocab().items()} for model in (a, b))
    for i in sorted(names_a.keys() & names_b.keys()):
        if names_a[i] != names_b[i]:
            raise ValueError(f"token {i} is {names_a[i]!r} to A and {names_b[i]!r} to B: {WAY_OUT}")


def check_same_bos(a: Cutting, b: Cutting) -> None:
    """ValueError where the two models expect windows that begin differently."""
    if a.bos != b.bos:
        raise ValueError(
            f"A's rule for BOS is {a.bos!r} and B's is {b.bos!r}: give `bos='every'`, 'first' or 'none' for both"
        )


def check_same_tokens(tasks: list[Task], others: list[Task]) -> None:
    """ValueError where the two tokenizers give the models something else to see or to guess."""
    for task, other in zip_longest(tasks, others):
        if task is None or other is None or given(task) != given(other):
            name = (task or other).text.facts.name
            raise ValueError(f"the tokenizers of A and B make different tokens of {name}: {WAY_OUT}")


def given(task: Task) -> tuple[Any, ...]:
    """All that a model is given of a window."""
    text, window = task.text, task.window
    return task[1:], text.lead, text.first, text.x[window.see_start : window.see_stop + 1].tolist()


class Scored(NamedTuple):
    """A unit scored by both models: what a comparison needs, and the divergence of each token scored."""

    a: pa.Table
    b: pa.Table
    facts: list[DocumentFacts]
    key: Ints  # of each token scored: its document << 32, and its place there
    kl_nats: Floats


class Pair(NamedTuple):
    """Two models that score the same windows."""

    a: Scorer
    b: Scorer
    say: Say

    def score(self, tasks: list[Task], facts: list[DocumentFacts]) -> Scored:
        """A unit through both models, batch by batch."""
        figures = [UnitColumns.of(tasks, scorer.topk) for scorer in (self.a, self.b)]
        kl_nats = np.zeros(len(figures[0].scored))
        for batch in batches(rows_of(tasks), self.a.cutting.batch_tokens):
            at = np.concatenate([row.scored for row in batch])
            kl_nats[at] = self.score_batch(batch, figures)
        a, b = (self.a.shard(tasks, facts, figures[0]).table, self.b.shard(tasks, facts, figures[1]).table)
        document, place = (numbers(a, name).astype(np.int64) for name in ("document", "index"))
        key, scored = (document << 32) + place, figures[0].scored
        return Scored(a.select(COLUMNS), b.select(COLUMNS), facts, key[scored], kl_nats[scored])

    def score_batch(self, batch: list[BatchRow], figures: Sequence[UnitColumns]) -> Floats:
        """Put the figures of a batch into their rows; its divergences come back."""
        (hidden_a, target), (hidden_b, _) = self.a.states(batch), self.b.states(batch)
        self.say(self.a.put(batch, hidden_a, target, figures[0]))
        self.b.put(batch, hidden_b, target, figures[1])
        found: Floats = divergences(hidden_a, self.a.model.head, hidden_b, self.b.model.head).cpu().numpy()
        return found

    def together(self, units: list[Scored]) -> Comparison:
        """All units, compared."""
        facts = {fact.document: fact for unit in units for fact in unit.facts}
        sides = (
            Side.of_tables(setting(scorer), facts, tables)
            for scorer, tables in ((self.a, [unit.a for unit in units]), (self.b, [unit.b for unit in units]))
        )
        return replace(compare_sides(*sides), divergence=summarise(units))


@torch.inference_mode()
def divergences(hidden_a: Tensor, head_a: Head, hidden_b: Tensor, head_b: Head) -> Tensor:
    """KL(A || B) of each row of hidden states, (n, D_a) and (n, D_b) -> (n,) float64, nats.

    sum over v of p_a(v) (log p_a(v) - log p_b(v)), where terms with p_a(v) = 0 count 0; infinite where B gives no
    chance to what A does. The logits are the models' own, what follows is float64.

    >>> hidden, identity = torch.eye(2)[:1], torch.eye(2)
    >>> heads = Head(identity, None, 1.0, None), Head(0 * identity, None, 1.0, None)
    >>> round(divergences(hidden, heads[0], hidden, heads[1]).item(), 4)  # ln 2 less the entropy of (0.731, 0.269)
    0.1109
    """
    n_rows, parts = max(1, LOGITS // len(head_a.weight)), []
    for start in range(0, len(hidden_a), n_rows):
        at = slice(start, start + n_rows)
        parts.append(divergences_of_logits(head_a.logits(hidden_a[at]), head_b.logits(hidden_b[at])))
    return torch.cat(parts)


def divergences_of_logits(z_a: Tensor, z_b: Tensor) -> Tensor:
    """(r, V) and (r, V) -> (r,)."""
    n_rows, parts = max(1, BLOCK // z_a.shape[-1]), []
    for start in range(0, len(z_a), n_rows):
        log_a, log_b = (z[start : start + n_rows].double().log_softmax(-1) for z in (z_a, z_b))
        p = log_a.exp()
        terms = torch.where(p > 0, p * (log_a - log_b), 0.0)
        parts.append(terms.sum(-1).clamp_(min=0))  # below 0 by rounding alone
    return torch.cat(parts)


def summarise(units: list[Scored]) -> Divergence:
    """The distribution of the tokens' divergences; the interval of their mean as that of a run's loss."""
    kl_nats = np.concatenate([unit.kl_nats for unit in units])
    keys, base = grouped(np.concatenate([unit.key for unit in units]) // BASE_TOKENS, [kl_nats, np.ones(len(kl_nats))])
    document = keys // (2**32 // BASE_TOKENS)
    method, clusters = choose(grouped(document, list(base))[1].T, base.T, document)
    mean = interval(*clusters.T, seed=method.seed, n_resamples=method.n_resamples)
    p99 = float(np.quantile(kl_nats, 0.99, method="inverted_cdf"))  # does not interpolate towards an infinite one
    return Divergence(len(kl_nats), Figure(*mean[:3]), float(np.median(kl_nats)), p99, float(kl_nats.max()), method)
