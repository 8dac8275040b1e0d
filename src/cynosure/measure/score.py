"""Score texts with a model: windows, hidden states, the loss of each token, and the summary of them all."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from cynosure.loss import token_stats
from cynosure.measure.stats import DocumentTokens, Excluded, Floats, Ints, Summary, Totals, excluded
from cynosure.models import Head, LanguageModel, hidden_states, read_head
from cynosure.text import Document, Tokens, Window, check_protocol, prefix_token, tokenize, windows
from cynosure.text.tokens import adds_bos

DEFAULT_WINDOW = 1024
POOL = 16  # batches' worth of windows that are sorted by length together
BOS_TWICE = (
    "lm-evaluation-harness also scores a second BOS after the first with this tokenizer, so its sum is another; "
    "its add_bos_token=False gives the sum here"
)
NO_PREFIX = "first of document: the tokenizer has neither BOS nor EOS to stand before it"


class Progress(NamedTuple):
    """Sums over the tokens of a batch just scored; `n_bytes` are those of their text."""

    tokens: int
    nats: float
    n_bytes: float


@dataclass(frozen=True)
class Plan:
    """What a run needs to know of its model and windows."""

    model: LanguageModel
    head: Head
    prefix: int | None
    protocol: str
    window: int
    stride: int
    batch_tokens: int


@dataclass
class Pending:
    """A document whose windows are being scored. Arrays run over x: its tokens, led by the prefix if there is one."""

    document: Document
    tokens: Tokens
    x: torch.Tensor
    windows: list[Window]
    nll: Floats = field(init=False)
    entropy: Floats = field(init=False)
    argmax: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.nll, self.entropy = np.full((2, len(self.x)), np.nan)
        self.argmax = np.full(len(self.x), -1)

    def result(self) -> DocumentTokens:
        (name, text), tokens = self.document, self.tokens
        own = slice(len(self.x) - len(tokens.ids), None)
        correct = self.argmax[own] == tokens.ids
        return DocumentTokens(
            name, text, self.nll[own], self.entropy[own], correct, tokens.n_bytes, tokens.n_chars, tokens.drift
        )


def score(
    model: LanguageModel,
    documents: Iterable[Document],
    *,
    protocol: str = "sliding",
    window: int | None = None,
    stride: int | None = None,
    batch_tokens: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Score documents under a protocol and sum up.

    `window` is the number of positions the model sees at once, by default 1024 or as many as the model has; `stride`,
    of `sliding` alone, how many tokens each further window scores, by default half the window. `batch_tokens` is how
    many positions go through the model at once, by default 1024 on a CPU and 16384 elsewhere: it changes speed and
    memory, not the figures. `progress` is called after every batch.

    Raises ValueError for a protocol, window or stride that makes no sense here, for a model whose head cannot be read
    or that gives NaN, and when there is not one token to score.
    """
    plan = make_plan(model, protocol, window, stride, batch_tokens)
    start = time.perf_counter()
    totals, left_out, empty = Totals(), list[Excluded](), list[str]()
    notes = dict.fromkeys([BOS_TWICE] if protocol == "rolling" and adds_bos(model.tokenizer) else [])
    for document in score_documents(plan, documents, progress or (lambda _: None)):
        if len(document.nll) == 0:
            empty.append(document.name)
            continue
        totals += Totals.of(document)
        left_out += excluded(document, NO_PREFIX)
        if document.drift:
            notes[f"no figures per byte or character: {document.drift} in {document.name}"] = None
    if totals.tokens == 0:
        raise ValueError(f"nothing to score: no token in {', '.join(empty[:3]) or 'the texts given'}")
    if empty:
        notes[f"left out as empty: {', '.join(empty[:3])}{' and more' if len(empty) > 3 else ''}"] = None
    seconds = time.perf_counter() - start
    return Summary(
        model.name, protocol, plan.window, plan.stride, model.dtype, totals, tuple(left_out), tuple(notes), seconds
    )


def make_plan(
    model: LanguageModel, protocol: str, window: int | None, stride: int | None, batch_tokens: int | None
) -> Plan:
    """Settle and check how to score with a model."""
    most = model.max_positions
    if window is None:
        window = min(DEFAULT_WINDOW, most or DEFAULT_WINDOW)
    stride = check_protocol(protocol, window, stride)
    if most is not None and window > most:
        raise ValueError(f"window {window} is more than the {most} positions of {model.name}")
    if batch_tokens is None:
        batch_tokens = 1024 if model.device.type == "cpu" else 16384
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    prefix = prefix_token(model.tokenizer)
    if prefix is None and protocol == "rolling":
        raise ValueError(
            f"rolling needs a BOS or EOS token, and the tokenizer of {model.name} has neither: use sliding"
        )
    return Plan(model, read_head(model.model), prefix, protocol, window, stride, batch_tokens)


def score_documents(
    plan: Plan, documents: Iterable[Document], progress: Callable[[Progress], None]
) -> Iterator[DocumentTokens]:
    """Score documents in their order, a pool of them at a time so that windows of like length meet in a batch."""
    pool: list[Pending] = []
    for document in documents:
        pool.append(prepare(plan, document))
        if sum(window.n_seen for pending in pool for window in pending.windows) >= POOL * plan.batch_tokens:
            yield from score_pool(plan, pool, progress)
            pool = []
    yield from score_pool(plan, pool, progress)


def prepare(plan: Plan, document: Document) -> Pending:
    """Tokenize a document and cut its windows."""
    tokens = tokenize(plan.model.tokenizer, document.text)
    x = torch.from_numpy(tokens.ids)
    if plan.prefix is not None:
        x = torch.cat([torch.tensor([plan.prefix]), x])
    return Pending(document, tokens, x, list(windows(len(x), plan.window, plan.stride)))


def score_pool(plan: Plan, pool: list[Pending], progress: Callable[[Progress], None]) -> Iterator[DocumentTokens]:
    for batch in batches([(pending, window) for pending in pool for window in pending.windows], plan.batch_tokens):
        progress(score_batch(plan, batch))
    yield from (pending.result() for pending in pool)


Row = tuple[Pending, Window]


def batches(rows: list[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Rows of like length, the longest first, as many together as pad to `batch_tokens` positions, at least one."""
    rows = sorted(rows, key=lambda row: -row[1].n_seen)
    while rows:
        n_rows = max(1, batch_tokens // rows[0][1].n_seen)
        yield rows[:n_rows]
        rows = rows[n_rows:]


@torch.inference_mode()
def score_batch(plan: Plan, batch: list[Row]) -> Progress:
    """Score the windows of a batch and put the figures into their documents."""
    head, device = plan.head, plan.model.device
    ids = torch.zeros(len(batch), max(window.n_seen for _, window in batch), dtype=torch.int64)
    for row, (pending, window) in zip(ids, batch, strict=True):
        row[: window.n_seen] = pending.x[window.see_start : window.see_stop]
    hidden = hidden_states(plan.model.model, ids.to(device))
    scored = [
        row[window.n_seen - window.n_scored : window.n_seen] for row, (_, window) in zip(hidden, batch, strict=True)
    ]
    target = torch.cat([pending.x[window.score_start : window.see_stop + 1] for pending, window in batch])
    stats = token_stats(
        torch.cat(scored), head.weight, target.to(device), bias=head.bias, scale=head.scale, softcap=head.softcap
    )
    figures = [part.cpu().numpy() for part in (stats.nll, stats.entropy, stats.argmax)]
    done, n_bytes = 0, 0.0
    for pending, window in batch:
        where, here = slice(window.score_start, window.see_stop + 1), slice(done, done + window.n_scored)
        pending.nll[where], pending.entropy[where], pending.argmax[where] = (part[here] for part in figures)
        done += window.n_scored
        n_bytes += len(pending.document.text.encode()) * window.n_scored / len(pending.tokens.ids)
        if np.isnan(pending.nll[where]).any():
            raise ValueError(
                f"{plan.model.name} gives NaN in {plan.model.dtype} for {pending.document.name}"
                + ("" if plan.model.dtype == "float32" else ": try --dtype float32")
            )
    return Progress(len(target), float(figures[0].sum(dtype=np.float64)), n_bytes)
