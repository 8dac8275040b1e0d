"""The value of a loss against the truth, and where it differs the likeliest reason."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cynosure.auditing.batch import AuditBatch, pulled
from cynosure.auditing.findings import Report
from cynosure.auditing.subject import Subject
from cynosure.auditing.truth import Nll, OwnLogits, nll_of, own_logits, reduced, split_of
from cynosure.loss import linear_cross_entropy
from cynosure.models import why_not_finite
from cynosure.patching import IGNORED

FACTORS = 64  # whole factors that are recognised, such as numbers of accumulated steps


class Reason(NamedTuple):
    """Another loss that may have been computed instead, and what is wrong with it."""

    names: tuple[str, ...]
    what: str
    value: float
    slack: float


class Compared(NamedTuple):
    """A batch whose loss has been compared with the truth; `auxiliary` is what the loss adds to it, 0 if nothing."""

    batch: AuditBatch
    right: Nll
    auxiliary: float
    equal: bool


def compare_loss(subject: Subject, batch: AuditBatch, report: Report, *, fused: bool) -> Compared:
    """The loss of a batch, and the fused one, against the mean cross-entropy of the model's own logits in float64."""
    loss = subject.loss(batch.with_labels(batch.labels))
    own = own_logits(subject, batch)
    right = nll_of(own, batch.truth)
    found, extra = float(loss), 0.0 if own.auxiliary is None else float(own.auxiliary)
    slack = right.slack / right.n + rounding_of(loss)
    if not math.isfinite(right.total):
        bad = (~torch.isfinite(right.nats)) & right.counted
        why = why_not_finite(subject.inner, type(subject.inner).__name__, lambda: own_logits(subject, batch))
        report.find(
            "not-finite",
            f"the model's own logits give a loss of {float(right.nats[bad][0])} at {batch.place(bad)}: {why}",
        )
        return Compared(batch, right, 0.0, False)
    auxiliary = min((0.0, extra), key=lambda x: abs(found - right.mean - x))
    difference = found - right.mean - auxiliary
    equal = abs(difference) <= slack
    added = f" with an auxiliary loss of {auxiliary:.6f}" if auxiliary else ""
    report.made(f"loss, batch {batch.index}", f"{found:.6f}, in float64 {right.mean + auxiliary:.6f}{added}; "
                f"{difference:+.1e}, rounding allows {slack:.1e}")  # fmt: skip
    if not equal:
        names, what = explain(subject, batch, own, right, loss)
        start = f"batch {batch.index}: {subject.name} gives {found:.6f}, the model's own logits {right.mean:.6f}"
        for name in names:
            report.find(name, f"{start}; {what}")
    elif loss.dtype in (torch.float16, torch.bfloat16):
        report.note(f"the loss is rounded to {loss.dtype}: taken from logits.float() it would be more exact")
    if fused:
        compare_fused(subject, batch, own, right, report)
    return Compared(batch, right, auxiliary, equal)


def rounding_of(loss: Tensor) -> float:
    """Of the loss itself: its last digit, and in float32 and above those of its sum."""
    eps = torch.finfo(loss.dtype).eps
    return eps * (4 if eps < 1e-6 else 1) * max(1.0, abs(float(loss)))


def explain(
    subject: Subject, batch: AuditBatch, own: OwnLogits, right: Nll, loss: Tensor
) -> tuple[tuple[str, ...], str]:
    """The names of what is wrong and the evidence: of the losses that give this value, the nearest."""
    found, last_digit = float(loss), rounding_of(loss)
    if not math.isfinite(found):
        return ("not-finite",), "the logits are finite"
    fitting = []
    for reason in reasons(subject, batch, own, right):
        slack, apart = reason.slack + last_digit, abs(found - reason.value)
        if apart <= slack < abs(reason.value - right.mean):
            fitting.append((apart, reason))
    if fitting:
        _, best = min(fitting, key=lambda pair: pair[0])
        return best.names, f"{best.what} {best.value:.6f}"
    factor, name = whole_factor(found, right.mean, right.slack / right.n + last_digit)
    if factor:
        return (name,), f"it is {times(factor, name)} that"
    return ("loss-differs",), f"{found - right.mean:+.6f}, for which no reason is known"


def whole_factor(found: float, right: float, slack: float) -> tuple[int, str]:
    """k where a value is k times or 1/k of the right one, and the name of that; 0 where it is neither."""
    for value, other, name in ((found, right, "loss-multiplied"), (right, found, "loss-divided")):
        factor = round(value / other) if other else 0
        # Dividing by the factor, the smaller of the two must come out.
        scale = 1 if name == "loss-divided" else factor
        if 2 <= factor <= FACTORS and abs(value - factor * other) <= slack * scale:
            return factor, name
    return 0, ""


def times(factor: int, name: str) -> str:
    return f"{factor} times" if name == "loss-multiplied" else f"1/{factor} of"


def reasons(subject: Subject, batch: AuditBatch, own: OwnLogits, right: Nll) -> Iterator[Reason]:
    """Losses with one mistake each, on the model's own logits."""
    yield from wrong_shifts(batch, own)
    yield from wrong_heads(subject, batch, own)
    yield from wrong_targets(batch, own)
    yield from wrong_means(batch, right)
    yield from without_inputs(subject, batch)


def mean_reason(names: tuple[str, ...], what: str, nll: Nll) -> Iterator[Reason]:
    if nll.n:
        yield Reason(names, what, nll.mean, nll.slack / nll.n)


def wrong_shifts(batch: AuditBatch, own: OwnLogits) -> Iterator[Reason]:
    """No shift or two in all, at each end of a row as one may write it."""
    labels, ahead = batch.labels, batch.ahead
    never, what = batch.targets(-ahead), "of the tokens just read they give"
    if ahead == -1:
        what = f"the data set shifts the wrong way; {what}"
    for target in (
        never,
        pulled(pulled(never, 1, IGNORED), -1, IGNORED),
        pulled(pulled(never, -1, IGNORED), 1, IGNORED),
    ):
        yield from mean_reason(("never-shifted",), what, nll_of(own, target))
    shifted_by = "the data set shifts, and so does the loss" if ahead else "the loss shifts twice"
    for target in (batch.targets(2 - ahead), pulled(labels.roll(-1, 1), 1, IGNORED)):
        what = f"{shifted_by}; of the tokens after the next they give"
        yield from mean_reason(("shifted-twice",), what, nll_of(own, target))


def wrong_heads(subject: Subject, batch: AuditBatch, own: OwnLogits) -> Iterator[Reason]:
    found = split_of(subject, batch, own)
    if found is None:
        return
    hidden, whole = found
    for names, head in reduced(whole):
        faults = tuple(f"{name}-dropped" for name in names)
        with subject.precision():
            logits = head.logits(hidden)
        yield from mean_reason(faults, f"without the {' and '.join(names)} of the head they give",
                               nll_of(own, batch.truth, logits))  # fmt: skip


def wrong_targets(batch: AuditBatch, own: OwnLogits) -> Iterator[Reason]:
    """The ids themselves, whatever the labels say."""
    everything = pulled(batch.ids, 1, IGNORED)
    what = "of every token, labelled or not, they give"
    yield from mean_reason(("labels-unused",), what, nll_of(own, everything))
    if batch.attention is not None:
        target = pulled(batch.ids.masked_fill(~batch.attention, IGNORED), 1, IGNORED)
        yield from mean_reason(("labels-unused",), what.replace("every token", "all but padding"), nll_of(own, target))


def wrong_means(batch: AuditBatch, right: Nll) -> Iterator[Reason]:
    n_rows, n_columns = right.nats.shape
    for name, n, counted in divisors(batch, n_rows, n_columns):
        if n:
            what = f"their sum over {right.n} labels divided by {counted} is"
            yield Reason((name,), what, right.total / n, right.slack / n)
    rows = [right.part(torch.arange(n_rows, device=right.nats.device)[:, None] == i) for i in range(n_rows)]
    rows = [row for row in rows if row.n]
    value = sum(row.mean for row in rows) / len(rows)
    slack = sum(row.slack / row.n for row in rows) / len(rows)
    yield Reason(("mean-of-rows",), f"the mean of the means of {len(rows)} rows is", value, slack)
    yield Reason(("not-divided",), f"their sum over {right.n} labels is", right.total, right.slack)


def divisors(batch: AuditBatch, n_rows: int, n_columns: int) -> Iterator[tuple[str, int, str]]:
    """Numbers that a sum of losses is divided by mistakenly: the fault's name, the number, and what it counts.

    Where no label is ignored several are the same number. The first of them is then the likeliest.
    """
    n_labels = int((batch.labels != IGNORED).sum())
    yield "counted-before-shift", n_labels, f"the {n_labels} labels there are before the shift"
    masks = (("attention_mask", batch.attention), ("the completion's mask", batch.completion))
    for name, mask in masks:
        for n in () if mask is None else (int(mask[:, 1:].sum()), int(mask.sum())):
            yield "ignored-counted", n, f"the {n} positions of {name}"
    for n in (n_rows * (n_columns - 1), n_rows * n_columns):
        yield "ignored-counted", n, f"all {n} positions"


def without_inputs(subject: Subject, batch: AuditBatch) -> Iterator[Reason]:
    given = [name for name in ("attention_mask", "position_ids") if name in subject.inputs(batch.given)]
    for dropped in (*({name} for name in given), *([set(given)] if len(given) > 1 else [])):
        what = f"without {' and '.join(sorted(dropped))} they give"
        yield from mean_reason(("input-dropped",), what, nll_of(own_logits(subject, batch, dropped), batch.truth))


def compare_fused(subject: Subject, batch: AuditBatch, own: OwnLogits, right: Nll, report: Report) -> None:
    """The loss that `patch` would put in place, on this batch."""
    layer = subject.inner.get_output_embeddings()
    if layer is not None and any(parameter.is_meta for parameter in layer.parameters()):
        report.made("fused loss", "not made: the head's weights are offloaded, and there in its own forward alone")
        return
    found, target = split_of(subject, batch, own), batch.truth
    if found is None:
        report.made("fused loss", "not made: the logits are not those of one linear layer with a scale or softcap")
        return
    hidden, head = found
    with subject.precision():
        fused = linear_cross_entropy(
            hidden, head.weight, target, bias=head.bias, scale=head.scale, softcap=head.softcap
        )
    theirs = nn.functional.cross_entropy(own.logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORED)
    apart = float(fused) - right.mean
    slack = 2 * abs(float(theirs) - right.mean) + right.slack / right.n + rounding_of(fused)
    figures = f"{float(fused):.6f}, in float64 {right.mean:.6f}; {apart:+.1e}, rounding allows {slack:.1e}"
    report.made("fused loss", figures)
    if not abs(apart) <= slack:
        report.find("fused-loss", f"batch {batch.index}: {figures}")
