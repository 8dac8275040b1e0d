"""Write the report of a run: a page made from its folder, without its model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from cynosure.measure import MANIFEST, SUMMARY, Scores, compare, open_protocols, open_run
from cynosure.reporting.compare_page import comparison_page
from cynosure.reporting.page import Page
from cynosure.reporting.score_page import score_page
from cynosure.reporting.train_page import train_page
from cynosure.system.files import check_writable, write_out
from cynosure.system.folders import READ_ONLY

Run: TypeAlias = str | Path | Scores
REPORT = "report.html"
NAME_CHARS = 50  # of the baseline, in the name of a file: some take 255 bytes, and a character up to 4


def report(
    run: Run, other: Run | None = None, *, out: str | Path | None = None, figures: str | Path | None = None
) -> Path:
    """Write the report of a run, or of two runs compared, as one HTML file that loads nothing.

    Args:
        run: the folder of a scored run, of a training, or of runs by `score --protocol all`; or scores. With `other`,
            the baseline, which must be a scored run.
        other: another scored run of the same texts, which is compared with `run`.
        out: the file to write. By default `report.html` in the folder of the run, or `report-vs-RUN.html` in that of
            `other`.
        figures: a folder for every chart as SVG, PNG and CSV, and a summary as JSON and Markdown.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: the run is unfinished or damaged, the runs cannot be compared, or `out` cannot be a file.
        PermissionError: the folder of the run cannot be written; give `out`.

    Example:
        >>> import tempfile, cynosure
        >>> folder = tempfile.mkdtemp()
        >>> _ = cynosure.score("smollm2", ["The cat sat on the mat."], out=folder)
        >>> cynosure.report(folder).name
        'report.html'
    """
    if out is not None:
        check_writable(Path(out), "`out`")
    if other is None:
        page, place = page_of(run), folder_of(run, out) / REPORT
    else:
        a, b = opened(run), opened(other)
        name = "A" if a.store is None else a.store.folder.resolve().name
        page, place = (
            comparison_page(compare(a, b), a, b),
            folder_of(other, out) / f"report-vs-{name[:NAME_CHARS]}.html",
        )
    return write_page(page, place if out is None else Path(out), figures)


def page_of(run: Run) -> Page:
    """Return the page of a scored run, of runs under several protocols, or of a training."""
    if isinstance(run, Scores):
        return score_page(run, {})
    folder = Path(run)
    if (folder / MANIFEST).is_file():
        return score_page(opened(folder), {})
    if protocols := open_protocols(folder):
        return protocols_page(protocols, folder)
    from cynosure.training import RunFolder

    training = RunFolder(folder)
    if not training.exists:
        raise FileNotFoundError(
            f"not a run: {folder} has no {MANIFEST} and no train.json. Score with `out`, or train, to make one"
        )
    return train_page(training)


def protocols_page(protocols: Mapping[str, Scores], folder: Path) -> Page:
    """Return the page of the first protocol that applies to the texts, with the others beside it."""
    first = next(iter(protocols.values()))
    return score_page(first, protocols)._replace(source=str(folder))


def opened(run: Run) -> Scores:
    """Read a scored run, with the calibration bins that its summary was saved with."""
    if isinstance(run, Scores):
        return run
    scores = open_run(run)
    try:
        calibration = json.loads((Path(run) / SUMMARY).read_bytes())["calibration"]
        scores.n_bins, scores.binning = calibration["n_bins"], calibration["binning"]
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no summary, or none of ours: the default bins are right
    return scores


def folder_of(run: Run, out: str | Path | None) -> Path:
    """Return the folder of a run. Raises ValueError if it has none and no `out` is given."""
    if not isinstance(run, Scores):
        return Path(run)
    if run.store is not None:
        return run.store.folder
    if out is None:
        raise ValueError("these scores were not stored: give `out`, the file of the report")
    return Path(out).parent


def write_page(page: Page, path: Path, figures: str | Path | None = None) -> Path:
    """Write a page, beside its place and then renamed, and its charts as files if a folder is given for them."""
    if figures is not None:
        from cynosure.reporting.take_away import write_figures

        write_figures(Path(figures), page.charts, page.values, page.title)
    try:
        write_out(path, page.html().encode())
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        reason = str(error.strerror).lower()
        raise PermissionError(
            f"{path} cannot be written ({reason}): `cynosure report` with `out` writes it elsewhere"
        ) from error
    return path
