"""Nothing is lost: runs on disk survive crashes, notice damage, and refuse to become another run."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from cynosure.measure import Scores, Statistics, open_run, score
from cynosure.measure.store import Store, difference
from cynosure.models import LanguageModel
from cynosure.text import Document
from tests.lm.conftest import byte_tokenizer, tiny

TEXTS = [f"the cat number {i} sat on the mat. naïve café 猫\n" * (1 + 5 * (i % 4)) for i in range(12)]
DOCUMENTS = [Document(f"doc{i}", text) for i, text in enumerate(TEXTS)]
OPTIONS: dict[str, Any] = {"window": 32, "batch_tokens": 64}
TIMES = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return tiny()


@pytest.fixture(scope="module")
def whole(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Scores:
    return score(model, DOCUMENTS, out=tmp_path_factory.mktemp("runs") / "whole", **OPTIONS)


def figures(scores: Scores) -> dict[str, Any]:
    return {key: value for key, value in scores.to_json().items() if key not in TIMES}


def folder_of(scores: Scores) -> Path:
    assert scores.store is not None
    return scores.store.folder


def test_the_store_has_it_all(model: LanguageModel, whole: Scores) -> None:
    in_memory = score(model, DOCUMENTS, **OPTIONS)
    assert figures(whole) == figures(in_memory)
    assert len(list(folder_of(whole).glob("tokens-*.parquet"))) > 3
    assert figures(open_run(folder_of(whole))) == figures(whole)
    stored, kept = whole.to_pandas(), in_memory.to_pandas()
    assert b"".join(stored["token_bytes"]) == "".join(TEXTS).encode()
    shared = [name for name in kept.columns if not name.startswith("top_")]
    assert stored[shared].equals(kept[shared])
    assert {len(ids) for ids in stored["top_ids"]} == {5}
    assert (stored["top_ids"].str[0] == stored["argmax"]).all()


def test_other_tools_read_the_shards(whole: Scores) -> None:
    table = pyarrow.parquet.read_table(sorted(folder_of(whole).glob("tokens-*.parquet"))[0])
    assert table.column_names[:4] == ["document", "index", "token_id", "token_bytes"]
    assert table["nll"].null_count == 0


def test_a_finished_run_is_not_scored_again(model: LanguageModel, whole: Scores) -> None:
    steps: list[Any] = []
    again = score(model, DOCUMENTS, out=folder_of(whole), progress=steps.append, **OPTIONS)
    assert (steps, figures(again)) == ([], figures(whole))


class Stop(Exception):
    pass


def interrupted(model: LanguageModel, folder: Path, steps: int, **options: Any) -> None:
    """A run that ends after so many batches."""
    left = iter(range(steps))

    def count(step: Any) -> None:
        if next(left, None) is None:
            raise Stop

    with pytest.raises(Stop):
        score(model, DOCUMENTS, out=folder, progress=count, **options)


def test_an_interrupted_run_goes_on(model: LanguageModel, whole: Scores, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(model, folder, 40, **OPTIONS)
    done = len(list(folder.glob("tokens-*.parquet")))
    assert done > 0
    with pytest.raises(ValueError, match=f"unfinished, {done} shards so far: run the same cynosure score again"):
        open_run(folder)
    steps: list[Any] = []
    again = score(model, DOCUMENTS, out=folder, window=32, progress=steps.append)  # the budget is the manifest's
    assert figures(again) == figures(whole)
    assert 0 < sum(step.tokens for step in steps) < whole.tokens


def test_a_damaged_shard_is_noticed_and_scored_again(model: LanguageModel, whole: Scores, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    score(model, DOCUMENTS, out=folder, **OPTIONS)
    shards = sorted(folder.glob("tokens-*.parquet"))
    shards[1].write_bytes(shards[1].read_bytes()[:-100])  # truncated
    with pytest.raises(ValueError, match=r"tokens-000001-\w+.parquet is damaged: run the same cynosure score again"):
        open_run(folder)
    flipped = bytearray(shards[2].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    shards[2].write_bytes(flipped)
    shards[0].unlink()
    steps: list[Any] = []
    again = score(model, DOCUMENTS, out=folder, progress=steps.append, **OPTIONS)
    assert figures(again) == figures(whole)
    assert 0 < sum(step.tokens for step in steps) < whole.tokens / 2
    min(folder.glob("tokens-*.parquet")).unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of .* shards, first number 0"):
        open_run(folder)


def test_another_run_is_refused_and_the_difference_named(model: LanguageModel, whole: Scores) -> None:
    folder = folder_of(whole)
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    cases: list[tuple[Any, list[Document], dict[str, Any], str]] = [
        (tiny(seed=1), DOCUMENTS, {}, "its model.weights_sha256 is .*, and now it is"),
        (tiny(byte_tokenizer(adds_bos=True)), DOCUMENTS, {}, "its model.tokenizer_sha256 is"),
        (model, DOCUMENTS, {"window": 16}, "its setting.window is 32, and now it is 16"),
        (model, DOCUMENTS, {"stride": 1}, "its setting.stride is 16, and now it is 1"),
        (model, DOCUMENTS, {"protocol": "rolling"}, "its setting.protocol is sliding, and now it is rolling"),
        (model, DOCUMENTS, {"batch_tokens": 32}, "its cutting.batch_tokens is 64, and now it is 32"),
        (model, [*DOCUMENTS[:-1], Document("doc11", "the other")], {}, "its text has changed, doc11 was another"),
        (model, DOCUMENTS[:-1], {}, "its text has changed, doc11 was another"),
        (model, [*DOCUMENTS, Document("new", "text")], {}, "its text has changed, new was another"),
    ]
    for other, documents, options, message in cases:
        with pytest.raises(ValueError, match=f"holds another run: {message}"):
            score(other, documents, out=folder, **(OPTIONS | options))
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before


def test_folders_that_are_no_runs(tmp_path: Path, model: LanguageModel) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no run: it has no manifest\.json"):
        open_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        open_run(tmp_path)
    (tmp_path / "manifest.json").write_text('{"units": 0}')
    with pytest.raises(ValueError, match="the manifest is of no run known here"):
        open_run(tmp_path)


def test_the_difference_of_manifests_is_said_in_words() -> None:
    a = {"cynosure": "1", "corpus": {"texts": [{"name": "x", "sha256": "0" * 64}]}}
    assert difference(a, a | {"cynosure": "2"}) is None
    other = {"corpus": {"texts": [{"name": "x", "sha256": "1" * 64}]}}
    assert difference(a, other) == "its corpus.texts.0.sha256 is 00000000..., and now it is 11111111..."
    assert difference(a, {"corpus": {"texts": []}}) == "its corpus.texts.0 is {'name': 'x', 'sha256': '" + "0" * 64 + (
        "'}, and now it is nothing"
    )


def test_shards_merge_to_the_same_bits_in_any_order(whole: Scores) -> None:
    assert whole.store is not None
    parts = []
    for shard, _ in whole.store.read_all():
        parts.append(Statistics())
        parts[-1].update(shard)
    chance = random.Random(0)
    for _ in range(3):
        chance.shuffle(parts)
        merged = Statistics()
        for part in parts:
            merged.merge(part)
        assert figures(Scores(whole.setting, merged)) == figures(whole)


RUN = """
import sys
from pathlib import Path
from tests.lm.test_store import DOCUMENTS, OPTIONS
from tests.lm.conftest import tiny
from cynosure.measure import score
score(tiny(), DOCUMENTS, out=sys.argv[1], **OPTIONS)
"""


def run_until_killed(folder: Path, shards: int, delay: float) -> None:
    """Start a run in another process, and kill it outright some time after so many shards are there."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(folder)])
    while process.poll() is None and len(list(folder.glob("tokens-*.parquet"))) < shards:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_killed_run_goes_on(model: LanguageModel, whole: Scores, tmp_path: Path) -> None:
    folder, chance = tmp_path / "run", random.Random(1)
    for shards in (1, 3):
        run_until_killed(folder, shards, chance.random() / 20)
    again = score(model, DOCUMENTS, out=folder, **OPTIONS)
    assert figures(again) == figures(whole)
    assert not list(folder.glob("*.partial"))


def test_a_full_disk_is_one_error_and_loses_nothing(model: LanguageModel, whole: Scores, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(model, folder, 40, **OPTIONS)
    before = {path.name for path in folder.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            score(model, DOCUMENTS, out=folder, **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "tokens-" in caught.value.filename
    assert {path.name for path in folder.iterdir()} == before
    assert figures(score(model, DOCUMENTS, out=folder, **OPTIONS)) == figures(whole)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(model: LanguageModel, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            score(model, DOCUMENTS, out=tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_the_manifest_tells_what_the_run_is(whole: Scores) -> None:
    manifest = json.loads((folder_of(whole) / "manifest.json").read_text())
    assert manifest["units"] == len(list(folder_of(whole).glob("tokens-*.parquet")))
    assert len(manifest["model"]["weights_sha256"]) == len(manifest["model"]["tokenizer_sha256"]) == 64
    assert manifest["cutting"]["batch_tokens"] == 64
    assert Store.open(folder_of(whole)).manifest == manifest
