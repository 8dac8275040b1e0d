"""One text under every protocol: why the same model gets another number from each tool."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cynosure.measure.results.scores import Scores
from cynosure.measure.scoring.corpus import Corpus
from cynosure.measure.scoring.score import EXPECTED, score
from cynosure.measure.storage.store import check_own
from cynosure.models import SplitModel
from cynosure.system.folders import check_is_folder, first_foreign
from cynosure.system.workers import Workers
from cynosure.text import PROTOCOLS, DoesNotApply


def score_all(
    model: SplitModel,
    corpus: Corpus,
    *,
    window: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    out: str | Path | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, Scores | str]:
    """The scores under each protocol by its name, or in a sentence why it does not apply to these texts.

    The documents must be such as can be gone through again. `window`, `stride` and `bos` as of `score`, for the
    protocols that have them; with `out` each protocol has a folder of its own in it. ValueError when none applies, and
    for whatever `score` raises it for besides.
    """
    if out is not None and Workers().leads:
        check_all_own(Path(out))
    found: dict[str, Scores | str] = {}
    for name, protocol in PROTOCOLS.items():
        if name == "strided-legacy":  # the same tokens as strided, averaged in another way
            strided = found["strided"]
            found[name] = strided if isinstance(strided, str) else as_printed(strided)
            continue
        if say:
            say(name)
        own: dict[str, Any] = {"window": window, "stride": stride if protocol.strides else None}
        own["bos"] = bos if name == "sliding" else "auto"
        if out is not None:
            own["out"] = str(Path(out) / name)
        try:
            found[name] = score(model, corpus, protocol=name, **own, **options)
        except DoesNotApply as error:
            found[name] = str(error)
    if all(isinstance(scores, str) for scores in found.values()):
        raise ValueError(str(found["sliding"]))
    with_costs(found)
    return found


def with_costs(found: dict[str, Scores | str]) -> None:
    """Add to the notes on BOS that is left out what it cost here."""
    full = found["sliding"]
    if isinstance(full, str) or full.setting.bos != "every":
        return
    best = full.figures["nats_per_token"].value
    for scores in found.values():
        if not isinstance(scores, str):
            own = scores.figures["nats_per_token"].value
            cost = f": {own:.3f} nats per token here, {best:.3f} under sliding with BOS in every window"
            notes = tuple(note + cost if note.endswith(EXPECTED) else note for note in scores.setting.notes)
            scores.setting = scores.setting._replace(notes=notes)


def check_all_own(folder: Path) -> None:
    """ValueError where a path is neither a folder of runs of `score_all`, nor an empty one, nor free."""
    check_is_folder(folder)
    if folder.is_dir() and (other := first_foreign(folder, PROTOCOLS.__contains__)):
        raise ValueError(f"{folder} holds {other}, which is no run of a protocol: give another `out`")
    for name in PROTOCOLS:
        check_own(folder / name)


def as_printed(strided: Scores) -> Scores:
    """The scores of `strided` summed up as Hugging Face's page prints it."""
    notes = tuple(note.replace("strided leaves", "strided-legacy leaves") for note in strided.setting.notes)
    return replace(strided, setting=strided.setting._replace(protocol="strided-legacy", notes=notes))
