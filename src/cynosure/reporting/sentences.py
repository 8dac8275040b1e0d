"""Plain sentences that read the numbers of a page, for someone new to them."""

import math
from typing import TYPE_CHECKING, Any

from cynosure.measure import conclusion
from cynosure.reporting.page import num_of, plain

if TYPE_CHECKING:
    from markupsafe import Markup

    from cynosure.measure import Comparison

BITS = 8  # of a byte that nothing predicts
SLIGHT = 0.005  # gap between confidence and accuracy that does not matter, even if it is no chance
LEAST_GAIN = 5e-5  # nats per token: a smaller one is shown as 0
NAMED = 3  # documents in a sentence
Values = dict[str, Any]


def filled(sentence: str, *parts: Any) -> "Markup":
    """Return a sentence with its parts put in for the braces; texts among them are escaped."""
    from markupsafe import Markup

    return Markup(sentence).format(*map(plain, parts))


def reading(values: Values, place: str = "") -> "Markup":
    """Say what the loss means. The JSON of the scores is in `values`, at `place`, which ends with a point."""
    scores = values[place.rstrip(".")] if place else values
    if scores["nats"] is None:
        return filled("The loss is infinite: the model gave probability 0 to a token that occurs in this text.")
    guess = num_of(values, f"{place}token_perplexity.value", 1)
    bits = scores["bits_per_byte"]["value"]
    if bits is None:
        return filled("Each token is as hard to guess as a fair draw among {} tokens.", guess)
    of_a_byte = num_of(values, f"{place}bits_per_byte.value", 3)
    if bits >= BITS:
        return filled(
            "This model predicts the text worse than a uniform guess would: {} bits per byte, where {} are enough.",
            of_a_byte, BITS,
        )  # fmt: skip
    return filled(
        "With this model's predictions the text could be stored in {} bits per byte, {} of its size; on average, the "
        "next token is as hard to guess as a fair draw among {} tokens.",
        of_a_byte, f"{bits / BITS:.0%}", guess,
    )  # fmt: skip


def interval(values: Values, key: str, form: int | str) -> "Markup":
    """Return the 95% interval of a metric as a phrase."""
    low, high = f"{key}.low", f"{key}.high"
    ends = num_of(values, low, form), num_of(values, high, form)
    metric = values
    for part in key.split("."):
        metric = metric[part]
    if metric["low"] is None or metric["high"] is None:
        return filled("too little text for an interval")
    return filled("95% interval {} to {}", *ends)


def hardest_document(values: Values) -> "Markup | None":
    """Name the document with the most bits per byte, if there are several, and why: hard tokens, or short ones."""
    rows = [
        (row["bits_per_byte"], i) for i, row in enumerate(values["by_document"]) if row["bits_per_byte"] is not None
    ]
    overall = values["bits_per_byte"]["value"]
    if len(rows) < 2 or overall is None:
        return None
    _, i = max(rows)
    row = values["by_document"][i]
    low = row.get("low")
    chance = "" if low is None or low > overall else " Its interval reaches down to the whole, so this may be chance."
    return filled(
        "The hardest document is {}: {} bits per byte, where the whole text takes {}. Its tokens cost {} nats, those "
        "of the whole {}; they hold {:.2f} bytes, those of the whole {:.2f}. It holds {} of all nats.{}",
        row["document"], num_of(values, f"by_document.{i}.bits_per_byte", 3), num_of(values, "bits_per_byte.value", 3),
        num_of(values, f"by_document.{i}.nats_per_token", 3), num_of(values, "nats_per_token.value", 3),
        row["bytes"] / row["tokens"], values["bytes"] / values["tokens"],
        num_of(values, f"by_document.{i}.share_of_nats", ".1%"), chance,
    )  # fmt: skip


def confidence(values: Values) -> "Markup":
    """Say whether the model is over-confident on the whole."""
    calibration = values["calibration"]
    bins, n = calibration["bins"], calibration["tokens"]
    sure = math.fsum(part["confidence"] * part["count"] for part in bins) / n
    right = math.fsum(part["accuracy"] * part["count"] for part in bins) / n
    gap, noise = sure - right, 2 * math.sqrt(right * (1 - right) / n)
    if abs(gap) <= max(SLIGHT, noise):
        verdict = "on the whole, it is as sure as it should be"
    else:
        verdict = f"it is {'over' if gap > 0 else 'under'}-confident by {100 * abs(gap):.1f} points"
    return filled(
        "The model gives its likeliest token {} on average, and that token is right {} of the time: {}.",
        f"{sure:.1%}", f"{right:.1%}", verdict,
    )  # fmt: skip


def temperature(values: Values) -> "Markup":
    """Say what a single temperature would recover."""
    calibration = values["calibration"]
    best, gain = calibration["best_temperature"], calibration["recoverable_nats_per_token"]
    numbers = (
        num_of(values, "calibration.best_temperature", 2), num_of(values, "calibration.recoverable_nats_per_token", 4),
    )  # fmt: skip
    if gain < LEAST_GAIN:
        return filled("No single temperature lowers the loss: the best, {}, would recover {} nats per token.", *numbers)
    loss = values["nats_per_token"]["value"]
    saved = f", {gain / loss:.2%} of the loss" if loss else ""
    edge = " It is the end of the range that was tried, so the best may lie beyond." if calibration["at_edge"] else ""
    how = "too sure, so softer predictions" if best > 1 else "too cautious, so sharper predictions"
    return filled(
        "Dividing the logits by a temperature of {} would recover {} nats per token{}: the model is {} cost less.{}",
        *numbers, saved, how, edge,
    )  # fmt: skip


def verdict(comparison: "Comparison", values: Values) -> "Markup":
    """Say which of two models is better, how sure that is, and by how much."""
    sentence = conclusion(comparison)
    if values["bits_per_byte"]["difference"]["low"] is None:
        return filled("{}", sentence)
    p = values["bits_per_byte"]["p"]
    shown = filled("") if p is None else filled(", {}", p_value(values))
    return filled(
        "{}: {} bits per byte, {}{}.", sentence.rstrip("."), num_of(values, "bits_per_byte.difference.value", "+.4f"),
        interval(values, "bits_per_byte.difference", "+.4f"), shown,
    )  # fmt: skip


def p_value(values: Values) -> "Markup":
    """Return the p-value of bits per byte as a phrase; resampling cannot make it smaller than its least value."""
    least = 2 / (values["interval"]["n_resamples"] + 1)
    sign, form = ("≤", ".4f") if values["bits_per_byte"]["p"] <= least else ("=", ".3f")
    return filled("p\N{NO-BREAK SPACE}{}\N{NO-BREAK SPACE}{}", sign, num_of(values, "bits_per_byte.p", form))


def hurt(values: Values) -> "Markup | None":
    """Say on how many documents B is better or worse than chance explains, and on which it is worse."""
    rows = [row for row in values["by_document"] if row.get("low") is not None and row.get("high") is not None]
    if len(rows) < 2:
        return None
    worse = sorted((row for row in rows if row["low"] > 0), key=lambda row: -row["difference"])
    better = sum(row["high"] < 0 for row in rows)
    names = ", ".join(row["document"] for row in worse[:NAMED]) + (", ..." if len(worse) > NAMED else "")
    which = f": {names}" if worse else ""
    return filled(
        "Of {} documents with an interval, B is better on {} and worse on {} by more than chance explains{}. Chance "
        "alone would put about 1 in 40 on each side.",
        len(rows), better, len(worse), which,
    )  # fmt: skip


def ending(values: Values) -> "Markup":
    """Say where a training stopped, and why."""
    step, steps, why = values["last"]["step"], values["plan"]["steps"], values["diverged"]
    if step == steps:
        return filled(
            "Finished: all {} steps were trained, {} tokens.",
            num_of(values, "plan.steps"), num_of(values, "last.tokens"),
        )  # fmt: skip
    if why is not None:
        return filled(
            "Stopped at step {} of {}: training diverged, because {}.",
            num_of(values, "diverged.step"), num_of(values, "plan.steps"), why["why"],
        )  # fmt: skip
    return filled(
        "Unfinished: it stopped after step {} of {}. Resume the run to continue it.",
        num_of(values, "last.step"), num_of(values, "plan.steps"),
    )  # fmt: skip
