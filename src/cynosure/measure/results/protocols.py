"""Scores of the same texts under several protocols."""

from dataclasses import replace
from pathlib import Path

from cynosure.measure.results.scores import Scores
from cynosure.measure.storage.manifest import MANIFEST
from cynosure.measure.storage.store import Store
from cynosure.text import PROTOCOLS


def open_protocols(folder: Path) -> dict[str, Scores]:
    """Read the runs in a folder that `score_all` wrote, by protocol; empty if it holds none.

    A protocol that does not apply to the texts has left a run without a shard, which is skipped.
    """
    runs: dict[str, Scores] = {}
    for name in PROTOCOLS:
        if name == "strided-legacy" and "strided" in runs:  # the same tokens
            runs[name] = as_printed(runs["strided"])
        elif (folder / name / MANIFEST).is_file() and (store := Store.open(folder / name)).files:
            runs[name] = Scores.of_store(store)
    return runs


def as_printed(strided: Scores) -> Scores:
    """Average the scores of `strided` as Hugging Face's page does."""
    notes = tuple(note.replace("strided leaves", "strided-legacy leaves") for note in strided.setting.notes)
    return replace(strided, setting=strided.setting._replace(protocol="strided-legacy", notes=notes))
