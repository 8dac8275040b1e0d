"""Wrong input is told in one line, with exit status 2, nothing on stdout and nothing half-written."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import transformers

from cynosure.cli import common
from cynosure.system.quiet import quiet_transformers
from tests.cli.test_cli import Done
from tests.cli.test_cli import run as run
from tests.tiny import byte_tokenizer, tiny_model

Run = Callable[..., Done]
SMALL = {"vocab_size": 300, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("the cat sat on the mat.\n" * 20)
    return file


def refused(done: Done, *words: str) -> None:
    """One line on stderr with the words in it, nothing on stdout, status 2."""
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1), done
    assert done.err.startswith("cynosure: ")
    for word in words:
        assert word in done.err, done.err


def test_texts(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    cases = {"empty.txt": b"", "binary.txt": b"\x7fELF\x00\x01", "nul.txt": b"abcd\0ef", "latin.txt": b"ab\xe9"}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    refused(run("score", tiny_folder, tmp_path / "none.txt"), "no such text", "none.txt")
    refused(run("score", tiny_folder, tmp_path / "nul.txt"), "nul.txt looks binary", "offset 4", "--errors replace")
    refused(run("score", tiny_folder, tmp_path / "empty.txt"), "nothing to score", "empty.txt")
    refused(run("score", tiny_folder, tmp_path / "binary.txt"), "binary.txt is an ELF program, not text")
    refused(run("score", tiny_folder, tmp_path / "latin.txt"), "latin.txt is not UTF-8", "offset 2", "--errors replace")


def test_standard_input_of_several_processes(run: Run, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(run("score", tiny_folder, "-"), "several processes cannot read standard input or a pipe")


def test_a_short_document_is_counted_and_listed(run: Run, tmp_path: Path, text: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer(special={}).save_pretrained(tmp_path / "model")  # no BOS: the first token cannot be guessed
    (tmp_path / "one.txt").write_text("x")
    done = run("score", tmp_path / "model", text, tmp_path / "one.txt", "--format", "json")
    assert done.status == 0
    values = json.loads(done.out)
    assert (values["documents"], values["unscored_documents"]) == (1, [str(tmp_path / "one.txt")])
    assert "1 document has no token to predict and is left out" in done.err
    refused(run("score", tmp_path / "model", tmp_path / "one.txt"), "nothing to score", "one.txt")


def saved(model: Any, folder: Path) -> Path:
    with quiet_transformers():
        model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_models_that_are_not_causal(run: Run, tmp_path: Path, text: Path) -> None:
    bert = transformers.BertConfig(hidden_size=16, intermediate_size=32, max_position_embeddings=64, **SMALL)
    t5 = transformers.T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    cases = [
        (transformers.BertModel(bert), "lacks 6 of its tensors, such as cls.predictions.bias"),
        (transformers.BertForMaskedLM(bert), "is not causal: its hidden states depend on the tokens that follow"),
        (transformers.T5ForConditionalGeneration(t5), "is a t5 model, expected a causal one such as llama or gpt2"),
        (tiny_model().model, "lacks 1 of its tensors, such as lm_head.weight"),  # else a random one would be taken
    ]
    for number, (model, message) in enumerate(cases):
        refused(run("score", saved(model, tmp_path / str(number)), text), message)


def test_damaged_models(run: Run, tiny_folder: Path, tmp_path: Path, text: Path) -> None:
    cases: list[tuple[str, int | None, str]] = [
        ("model.safetensors", 5000, "cannot load the model in"),
        ("model.safetensors", 100, "cannot load the model in"),
        ("model.safetensors", 0, "cannot load the model in"),
        ("model.safetensors", None, "cannot load the model in"),
        ("config.json", 50, "cannot load the model in"),
        ("tokenizer.json", 50, "--tokenizer can name another one"),
    ]
    for number, (name, length, message) in enumerate(cases):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_folder, folder)
        if length is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes((folder / name).read_bytes()[:length])
        refused(run("score", folder, text), message, str(folder))


def test_damaged_gguf_files(run: Run, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYNOSURE_CACHE", str(tmp_path / "cache"))
    cases = {
        "empty": (b"", "is not a GGUF file"),
        "zip": (b"PK\x03\x04" * 100, "is not a GGUF file"),
        "noise": (b"GGUF" + bytes(range(256)) * 20, "noise.gguf is damaged or cut short"),
        "short": (b"GGUF\x03\x00\x00\x00", "short.gguf is damaged or cut short"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / f"{name}.gguf").write_bytes(data)
        refused(run("score", tmp_path / f"{name}.gguf", text), message)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix not in ("", ".lock")]


def test_runs(run: Run, tiny_folder: Path, tmp_path: Path, text: Path) -> None:
    refused(run("summary", tmp_path / "none"), "not a run: ", "none has no manifest.json. Score with --out to make one")
    refused(run("score", tiny_folder, text, "--out", text), f"{text} is a file: give a folder as --out")
    refused(run("score", tiny_folder, text, "--out", tmp_path), "it holds text.txt and no manifest.json", "--out")
    assert not (tmp_path / "manifest.json").exists()
    folder = tmp_path / "run"
    folder.mkdir()
    known = '{"model": {}, "setting": {}, "cutting": {}, "corpus": {}}'
    for data in ("[1]", "{", "null", '{"name": "app", "setting": [1]}', '{"units": 3}', "\xff"):
        (folder / "manifest.json").write_bytes(data.encode("latin-1"))
        refused(run("summary", folder), "manifest.json is", "give another folder")
        refused(run("score", tiny_folder, text, "--out", folder), "manifest.json is", "give another folder")
        assert (folder / "manifest.json").read_bytes() == data.encode("latin-1")
    (folder / "manifest.json").write_text(known)
    refused(run("summary", folder), "manifest.json is not the manifest of a run")


def test_a_damaged_and_an_unfinished_run(run: Run, tiny_folder: Path, tmp_path: Path, text: Path) -> None:
    command = ["score", tiny_folder, text, "--out", tmp_path / "run", "--batch-tokens", 16, "--format", "json"]
    whole = json.loads(run(*command).out)
    shard = min((tmp_path / "run").glob("tokens-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(run("summary", tmp_path / "run"), f"{shard} is damaged", "score the same again")
    done = run(*command)
    assert f"{shard} is damaged and will be scored again" in done.err
    assert json.loads(done.out)["nats"] == whole["nats"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest | {"units": None}))
    refused(run("summary", tmp_path / "run"), "manifest.json was changed", "restore it from a copy")
    for key in ("units", "shards", "manifest_sha256"):  # as an earlier version left it
        del manifest[key]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    refused(run("summary", tmp_path / "run"), "is unfinished", "score the same again to continue")


@contextmanager
def files_of(most: int) -> Iterator[None]:
    """No file may become larger, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(run: Run, tiny_folder: Path, tmp_path: Path, text: Path) -> None:
    for most, written in ((100, set()), (4000, {"manifest.json"})):
        with files_of(most):
            done = run("score", tiny_folder, text, "--out", tmp_path / "run")
        refused(done, "file too large; free some space and run the same command again")
        assert {path.name for path in (tmp_path / "run").iterdir()} == written
    assert run("score", tiny_folder, text, "--out", tmp_path / "run").status == 0


@pytest.mark.exhaustive
def test_a_full_standard_output(tiny_folder: Path, text: Path) -> None:
    command = [sys.executable, "-m", "cynosure", "score", str(tiny_folder), str(text), "--quiet"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    message = "cynosure: standard output: no space left on device; free some space and run the same command again\n"
    assert (done.returncode, done.stderr) == (2, message)


def test_a_full_disk_is_said_the_same_for_every_kind() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert common.one_line(OSError(number, os.strerror(number), "x")).endswith(
            "; free some space and run the same command again"
        )
