"""Score the same texts under every protocol, to show why tools report different numbers for one model."""

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
    """Map each protocol's name to its scores, or to a sentence on why it does not apply to these texts.

    The documents must be iterable several times. `window`, `stride` and `bos` are those of `score`, for the protocols
    that have them. With `out`, each protocol gets its own folder inside it. Raises ValueError if no protocol applies,
    and where `score` does.
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
    """Add to the notes on missing BOS tokens what they cost on these texts."""
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
    """The scores of `strided`, averaged as Hugging Face's page does."""
    notes = tuple(note.replace("strided leaves", "strided-legacy leaves") for note in strided.setting.notes)
    return replace(strided, setting=strided.setting._replace(protocol="strided-legacy", notes=notes))
