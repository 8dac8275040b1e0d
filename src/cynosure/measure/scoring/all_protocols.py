"""Score the same texts under every protocol, to show why tools report different numbers for one model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cynosure.measure.results.protocols import as_printed
from cynosure.measure.results.scores import Scores
from cynosure.measure.scoring.corpus import Corpus
from cynosure.measure.scoring.score import EXPECTED, score
from cynosure.measure.storage.store import REPORT, check_own
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
    """Score texts under every protocol.

    Args:
        model: the model.
        corpus: the texts. They must be iterable several times.
        window: as in `score`, for all protocols.
        stride: as in `score`, for the protocols that have one.
        bos: as in `score`, for `sliding`.
        out: folder that gets a folder for each protocol.
        say: called with the name of each protocol before it is scored.
        options: other options of `score`.

    Returns:
        By the name of each protocol its scores, or a sentence on why it does not apply to these texts.

    Raises:
        ValueError: no protocol applies, or for the reasons of `score`.
    """
    if out is not None and Workers().leads:
        check_all_own(Path(out))
    results: dict[str, Scores | str] = {}
    for name, protocol in PROTOCOLS.items():
        if name == "strided-legacy":  # the same tokens as strided, averaged differently
            strided = results["strided"]
            results[name] = strided if isinstance(strided, str) else as_printed(strided)
            continue
        if say:
            say(name)
        own: dict[str, Any] = {"window": window, "stride": stride if protocol.strides else None}
        own["bos"] = bos if name == "sliding" else "auto"
        if out is not None:
            own["out"] = str(Path(out) / name)
        try:
            results[name] = score(model, corpus, protocol=name, **own, **options)
        except DoesNotApply as error:
            results[name] = str(error)
    if all(isinstance(scores, str) for scores in results.values()):
        raise ValueError(str(results["sliding"]))
    with_costs(results)
    return results


def with_costs(results: dict[str, Scores | str]) -> None:
    """Add to the notes on missing BOS tokens what they cost on these texts."""
    full = results["sliding"]
    if isinstance(full, str) or full.setting.bos != "every":
        return
    best = full.figures["nats_per_token"].value
    for scores in results.values():
        if not isinstance(scores, str):
            own = scores.figures["nats_per_token"].value
            cost = f": {own:.3f} nats per token here, {best:.3f} under sliding with BOS in every window"
            notes = tuple(note + cost if note.endswith(EXPECTED) else note for note in scores.setting.notes)
            scores.setting = scores.setting._replace(notes=notes)


def check_all_own(folder: Path) -> None:
    """Check that a path is free, an empty folder, or a folder of runs by `score_all`.

    Args:
        folder: the path.

    Raises:
        ValueError: the path is something else.
    """

    def is_of_all(name: str) -> bool:
        return name in PROTOCOLS or bool(REPORT.fullmatch(name))

    check_is_folder(folder)
    if folder.is_dir() and (other := first_foreign(folder, is_of_all)):
        raise ValueError(f"{folder} holds {other}, which is not a run of a protocol: give another `out`")
    for name in PROTOCOLS:
        check_own(folder / name)
