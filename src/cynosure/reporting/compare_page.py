"""The page of a comparison."""

from typing import TYPE_CHECKING, Any

from cynosure.measure import NAMES, described
from cynosure.reporting import sentences
from cynosure.reporting.page import Page
from cynosure.reporting.score_page import source_of, view_of

if TYPE_CHECKING:
    from cynosure.measure import Comparison, Scores

SHOWN = 8  # segments each way


def comparison_page(comparison: "Comparison", a: "Scores | None" = None, b: "Scores | None" = None) -> Page:
    """Return the page of a comparison.

    Args:
        comparison: B compared with A, the baseline.
        a: the run of A; None if it was not stored.
        b: the run of B likewise. With both, the page shows the change at each token.
    """
    from cynosure.reporting.charts.compare import compare_charts

    values = comparison.to_json()
    names = (comparison.a.model, comparison.b.model)
    sources = names if a is None or b is None else (source_of(a), source_of(b))
    if names[0] == names[1]:  # two checkpoints of one model
        names = sources
    title = f"{names[1]} compared with {names[0]}"
    context: dict[str, Any] = {
        "sentences": sentences,
        "names": names,
        "described": described(comparison),
        "verdict": sentences.verdict(comparison, values),
        "metrics": [(name, shown) for name, shown in NAMES.items() if values[name] is not None],
        "view": None if a is None or b is None else view_of(b, a),
        "n_segments": SHOWN,
    }
    return Page("compare.html.j2", title, " and ".join(sources), values, compare_charts(values), context)
