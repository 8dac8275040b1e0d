"""Gradient accumulation: the losses of unequal micro-batches must add up to the loss of the whole."""

import math

import torch
from torch import Tensor

from cynosure.auditing.batch import pulled
from cynosure.auditing.findings import Report
from cynosure.auditing.loss import Compared, rounding_of, times, whole_factor
from cynosure.auditing.subject import Subject
from cynosure.auditing.truth import Nll
from cynosure.patching import IGNORED


def check_accumulation(subject: Subject, compared: list[Compared], report: Report) -> None:
    """With num_items_in_batch on parts of a batch; without it, how far a mean of means is off on these batches."""
    if subject.takes_items:
        whole = max(compared, key=lambda one: one.right.n)
        if whole.right.n < 2:
            report.made("accumulation", "not made: no batch has two labelled tokens")
            return
        compare_parts(subject, whole, report)
    else:
        compare_means(subject, compared, report)


def unequal_parts(right: Nll) -> list[Tensor]:
    """Two masks over the targets: of the cuts at eighths that whose mean of means is farthest from the mean."""
    places = right.counted.nonzero()
    found: list[tuple[float, list[Tensor]]] = []
    for cut in {max(1, len(places) * eighth // 8) for eighth in range(1, 8)}:
        masks = []
        for part in (places[:cut], places[cut:]):
            mask = torch.zeros_like(right.counted)
            mask[part[:, 0], part[:, 1]] = True
            masks.append(mask)
        off = abs(sum(right.part(mask).mean for mask in masks) / 2 - right.mean)
        found.append((off, masks))
    return max(found, key=lambda pair: pair[0])[1]


def compare_parts(subject: Subject, whole: Compared, report: Report) -> None:
    """The batch twice, each time with a part of its labels, as two micro-batches of it."""
    batch, right, n_items = whole.batch, whole.right, whole.right.n
    parts, losses, slacks = [], [], []
    for mask in unequal_parts(right):
        kept = pulled(mask, batch.ahead - 1, False)
        loss = subject.loss(batch.with_labels(batch.labels.masked_fill(~kept, IGNORED)), n_items)
        parts.append(right.part(mask))
        losses.append(float(loss) - whole.auxiliary)
        slacks.append(parts[-1].slack / n_items + rounding_of(loss))
    expected = [part.total / n_items for part in parts]
    counts = " and ".join(str(part.n) for part in parts)
    figures = (f"micro-batches of {counts} labelled tokens give {shown(losses)} with num_items_in_batch={n_items}, "
               f"in float64 {shown(expected)}")  # fmt: skip
    report.made("accumulation", figures)
    if close(losses, expected, slacks):
        return
    name, why = explain_parts(parts, losses, expected, slacks, n_items)
    report.find(name, f"batch {batch.index}: {figures}; {why}")


def explain_parts(
    parts: list[Nll], losses: list[float], expected: list[float], slacks: list[float], n_items: int
) -> tuple[str, str]:
    """The name of what is wrong with the losses of parts, and the evidence."""
    if not all(map(math.isfinite, losses)):
        return "not-finite", "where a row has no label the loss is none"
    means = [part.mean for part in parts]
    if close(losses, means, [slack * n_items / part.n for slack, part in zip(slacks, parts, strict=True)]):
        return "mean-of-means", "these are their own means: num_items_in_batch is not used"
    if close(losses, [mean / n_items for mean in means], slacks):
        return "loss-divided", f"these are their own means, divided by {n_items} once more"
    if close(losses, [part.total for part in parts], [slack * n_items for slack in slacks]):
        return "not-divided", "these are sums: num_items_in_batch is not used"
    total, right = sum(losses), sum(expected)
    factor, name = whole_factor(total, right, sum(slacks))
    ratio = total / right if right else 0.0
    if factor and close(losses, [x * ratio for x in expected], [slack * max(1.0, ratio) for slack in slacks]):
        return name, f"in all {times(factor, name)} what it should be"
    return "accumulation-differs", f"together {total:.6f} instead of {right:.6f}"


def compare_means(subject: Subject, compared: list[Compared], report: Report) -> None:
    """What averaging the means of rows, or of batches of one row, would give in place of the mean over tokens."""
    rows = [torch.stack([one.right.nats.sum(1), one.right.counted.sum(1).double()], 1) for one in compared]
    by_row = len(rows[0]) > 1
    units = rows[0] if by_row else torch.cat(rows)
    units = units[units[:, 1] > 0]
    counts = [int(n) for n in units[:, 1]]
    mean = float(units[:, 0].sum() / units[:, 1].sum())
    off = float((units[:, 0] / units[:, 1]).mean()) - mean
    what = f"{subject.name} takes no num_items_in_batch"
    if len(set(counts)) < 2:
        report.note(f"{what}: a mean of micro-batches is exact only while all have as many labels as each other")
        report.made("accumulation", "not made: no two micro-batches with unequal numbers of labels")
        return
    figures = (f"{'rows' if by_row else 'batches'} of {min(counts)} to {max(counts)} labels, averaged, give "
               f"{mean + off:.6f}, their tokens {mean:.6f}: {off:+.6f}")  # fmt: skip
    report.made("accumulation", figures)
    report.find("mean-of-means", f"{what}: {figures}")


def close(values: list[float], others: list[float], slacks: list[float]) -> bool:
    return all(abs(a - b) <= slack for a, b, slack in zip(values, others, slacks, strict=True))


def shown(values: list[float]) -> str:
    return " and ".join(f"{value:.6f}" for value in values)
