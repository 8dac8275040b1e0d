"""Nothing is lost: runs on disk survive crashes, notice damage, and refuse to become another run."""

import json
import logging
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
import torch
from torch import Tensor

from cynosure.measure import Scores, Statistics, open_run, score
from cynosure.measure.scoring.budget import default_unit_tokens
from cynosure.measure.storage.store import Store, difference
from cynosure.models import LanguageModel, load, split
from cynosure.models.head import Head
from cynosure.models.splitting import SplitModel
from cynosure.system.folders import locked
from cynosure.text import Document
from tests.loss.subclasses import Parted
from tests.tiny import byte_tokenizer, tiny

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
    with pytest.raises(ValueError, match=f"unfinished, {done} shards so far: score the same again"):
        open_run(folder)
    steps: list[Any] = []
    again = score(model, DOCUMENTS, out=folder, window=32, progress=steps.append)  # the budget is the manifest's
    assert figures(again) == figures(whole)
    assert 0 < sum(step.tokens for step in steps) < whole.tokens


def test_a_run_goes_on_with_the_threads_that_it_was_begun_with(
    model: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the last bits of a loss depend on their number."""
    monkeypatch.setattr(logging.getLogger("cynosure"), "propagate", True)
    was, used = torch.get_num_threads(), set()
    try:
        torch.set_num_threads(1)
        interrupted(model, tmp_path, 40, **OPTIONS)
        torch.set_num_threads(2)
        with caplog.at_level("INFO", "cynosure"):
            score(model, DOCUMENTS, out=tmp_path, progress=lambda _: used.add(torch.get_num_threads()), **OPTIONS)
        assert (used, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(was)
    assert f"{tmp_path} was started with 1 CPU thread(s): continuing with as many, not with 2" in caplog.messages


def test_a_damaged_shard_is_noticed_and_scored_again(model: LanguageModel, whole: Scores, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    score(model, DOCUMENTS, out=folder, **OPTIONS)
    shards = sorted(folder.glob("tokens-*.parquet"))
    shards[1].write_bytes(shards[1].read_bytes()[:-100])  # truncated
    with pytest.raises(ValueError, match=r"tokens-000001-\w+.parquet is damaged: score the same again"):
        open_run(folder)
    flipped = bytearray(shards[2].read_bytes())
    flipped[len(flipped) // 2] ^= 1
    shards[2].write_bytes(flipped)
    shards[0].unlink()
    steps: list[Any] = []
    again = score(model, DOCUMENTS, out=folder, progress=steps.append, **OPTIONS)
    assert figures(again) == figures(whole)
    assert 0 < sum(step.tokens for step in steps) < whole.tokens / 2
    max(folder.glob("tokens-*.parquet")).unlink()
    with pytest.raises(ValueError, match=rf"lacks 1 of .* shards, first number {len(shards) - 1}:"):
        open_run(folder)
    min(folder.glob("tokens-*.parquet")).unlink()
    with pytest.raises(ValueError, match=r"lacks 2 of .* shards, first number 0:"):
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
        (model, [*DOCUMENTS[:-1], Document("doc11", "the other")], {}, "its text has changed, doc11 was different"),
        (model, DOCUMENTS[:-1], {}, "its text has changed, doc11 was different"),
        (model, [*DOCUMENTS[:-1], DOCUMENTS[-1]._replace(n_prompt_chars=3)], {}, "its text has changed, doc11 was"),
        (model, [*DOCUMENTS, Document("new", "text")], {}, "its text has changed, new was different"),
    ]
    for other, documents, options, message in cases:
        with pytest.raises(ValueError, match=f"holds another run: {message}"):
            score(other, documents, out=folder, **(OPTIONS | options))
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before


def test_a_digest_is_of_all_that_logits_depend_on() -> None:
    """Of what is computed at loading too, and of a head that is given; not of what calls leave behind."""
    model, far = tiny(), tiny(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert model.model.state_dict().keys() == far.model.state_dict().keys()
    assert split(model).weights_sha256() == split(tiny()).weights_sha256() != split(far).weights_sha256()
    body, weight = model.model.model, model.model.lm_head.weight.detach()
    one, other = (split(body, tokenizer=model.tokenizer, head=head).weights_sha256() for head in (weight, weight * 2))
    assert one != other
    before = split(model).tokenizer_sha256()
    model.tokenizer("the cat sat on the mat", truncation=True, max_length=3)
    assert split(model).tokenizer_sha256() == before


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", [Parted.of, Tensor.to_sparse, Tensor.to_sparse_csr])
def test_a_digest_is_of_weights_without_memory_too(kind: Any) -> None:
    """A head that is given is in the digest, whatever other weights have no address of their own either."""
    model = tiny()
    body, weight = model.model.model, model.model.lm_head.weight.detach()
    body.register_buffer("first", kind(weight.flip(0)))

    def digest(head: Tensor) -> str:
        parts = SplitModel(body, Head(head, None, 1.0, None), model.tokenizer, "tiny", None, (body,))
        return parts.weights_sha256()

    assert len({digest(kind(head)) for head in (weight, weight * 2, weight.flip(1))}) == 3
    assert digest(kind(weight)) == digest(kind(weight.clone()))
    body.first = kind(weight)
    assert digest(body.first) == digest(body.first.detach()) != digest(kind(weight))


def test_two_processes_do_not_share_a_folder(model: LanguageModel, whole: Scores) -> None:
    with (
        locked(folder_of(whole), "scoring into", lambda: None),
        pytest.raises(ValueError, match="another process is scoring into"),
    ):
        score(model, DOCUMENTS, out=folder_of(whole), **OPTIONS)
    assert score(model, DOCUMENTS, out=folder_of(whole), **OPTIONS).nats == whole.nats


def test_the_folder_is_listed_once_and_resuming_reads_each_shard_once(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    interrupted(model, folder, 40, **OPTIONS)
    listed, read = [], []
    own_glob, own_read = Path.glob, Path.read_bytes
    monkeypatch.setattr(Path, "glob", lambda path, pattern: listed.append(pattern) or own_glob(path, pattern))
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or own_read(path))
    monkeypatch.setattr(Scores, "of_store", lambda store: store)
    done = set(folder.glob("tokens-*.parquet"))
    listed.clear()
    store: Any = score(model, DOCUMENTS, out=folder, **OPTIONS)
    assert sorted(path for path in read if path.suffix == ".parquet") == sorted(done)
    assert len(list(store.read_all())) > len(done) > 1
    assert len(listed) == 2  # by the one that wrote, and the one that reads


def test_a_run_of_which_nothing_is_scored_gives_way(model: LanguageModel, whole: Scores, tmp_path: Path) -> None:
    text, folder = tmp_path / "text.txt", tmp_path / "run"
    text.write_bytes(b"ab\xe9")
    with pytest.raises(ValueError, match="is not UTF-8"):
        score(model, [text], out=folder, **OPTIONS)
    assert [path.name for path in folder.iterdir()] == ["manifest.json"]
    assert figures(score(model, DOCUMENTS, out=folder, **OPTIONS)) == figures(whole)


def test_a_folder_of_something_else_is_left_alone(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt.partial").write_text("mine")
    with pytest.raises(ValueError, match=r"is not a run: it holds thesis.txt.partial and no manifest.json"):
        score(model, DOCUMENTS, out=tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt.partial"]
    killed = tmp_path / "run" / "manifest.json.123.partial"  # what a kill during the first write leaves
    killed.parent.mkdir()
    killed.touch()
    assert score(model, DOCUMENTS[:1], out=killed.parent, **OPTIONS).documents == 1
    assert not killed.exists()


def test_folders_that_are_no_runs(tmp_path: Path, model: LanguageModel) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a run: .* has no manifest\.json"):
        open_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        open_run(tmp_path)
    (tmp_path / "manifest.json").write_text('{"units": 0}')
    with pytest.raises(ValueError, match="is not the manifest of a run: give another folder"):
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


CRASHES = """
import os, random, signal, sys, time
from pathlib import Path
from cynosure import measure, models
from cynosure.cli import app, entry, tables  # once, for all that are forked

own, chance = Path.replace, random.Random(1)
folder, command = Path(sys.argv[1]), ["cynosure", "score", *sys.argv[2:], "--out", sys.argv[1]]
models.load(command[2])

def start(dies_at=None):
    def replace(self, target):  # the step from a file written beside to one that counts
        if dies_at and Path(target).name.startswith(dies_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return own(self, target)
    if child := os.fork():
        return child
    Path.replace, sys.argv = replace, command
    entry.main()

def until_dead(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

assert until_dead(start(dies_at="manifest")) == -9 and not (folder / "manifest.json").exists()
command += ["--batch-tokens", "64"]
for kill in range(int(os.environ.get("KILLS", 6))):
    before = len(list(folder.glob("tokens-*.parquet")))
    child, more = start(), before + chance.randrange(3)
    while len(list(folder.glob("tokens-*.parquet"))) < more or not (folder / "manifest.json").exists():
        time.sleep(0.001)
    time.sleep(chance.random() / 50)
    os.kill(child, signal.SIGKILL)
    assert until_dead(child) == -9, "it was through already"
    if kill == 0:
        command = command[:-2]  # from here on the batch budget is the manifest's
assert until_dead(start(dies_at="tokens-")) == -9
assert until_dead(start(dies_at="manifest")) == -9  # everything scored, but not yet said so
assert until_dead(start(dies_at="summary")) == -9
assert until_dead(start()) == 0
"""


@pytest.mark.exhaustive
def test_a_run_killed_again_and_again_is_as_one_that_was_not(tiny_folder: Path, tmp_path: Path) -> None:
    text, folder = tmp_path / "text.txt", tmp_path / "run"
    text.write_text("".join(f"the cat number {i} sat on the mat. naïve café 猫\n" for i in range(400)))
    command = [sys.executable, "-c", CRASHES, folder, tiny_folder, text, "--window", "32", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = score(load(str(tiny_folder)), [text], window=32, batch_tokens=64, out=tmp_path / "whole")
    assert figures(open_run(folder)) == figures(whole)
    assert not list(folder.glob("*.partial"))
    assert json.loads((folder / "manifest.json").read_text())["cutting"]["batch_tokens"] == 64


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


@pytest.mark.parametrize(("n_parameters", "batches"), [(10_000, 16), (135_000_000, 3), (8_000_000_000, 1)])
def test_a_unit_of_a_larger_model_is_smaller(n_parameters: int, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """About 20 s of one slow thread, whole batches, 16 at most."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.empty(n_parameters, device="meta"))
    model: Any = SimpleNamespace(device=torch.device("cpu"), modules=(module, module))
    assert default_unit_tokens(model, 1024) == batches * 1024


def test_a_run_goes_on_with_the_units_it_was_begun_with(
    model: LanguageModel, whole: Scores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(model, tmp_path / "run", 40, **OPTIONS)
    monkeypatch.setattr("cynosure.measure.scoring.score.default_unit_tokens", lambda *_: 7)
    scores = score(model, DOCUMENTS, out=tmp_path / "run", **OPTIONS)
    assert figures(scores) == figures(whole)
    assert scores.store is not None
    assert scores.store.manifest["cutting"]["unit_tokens"] == 16 * 64
