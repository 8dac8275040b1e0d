"""A library written in Rust may panic on a file: that is one sentence too, and nothing beside it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cynosure.models import load
from cynosure.system.panics import is_panic, quiet_panic
from cynosure.text import tokenize
from tests.cli.test_bad_input import refused
from tests.cli.test_cli import run as run

BPE: dict[str, Any] = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    "special_tokens": {},
}


def with_tokenizer(tiny_folder: Path, folder: Path, **parts: Any) -> Path:
    """The tiny model with a tokenizer.json of these parts."""
    shutil.copytree(tiny_folder, folder)
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    values = {"version": "1.0", "added_tokens": [], "model": BPE} | empty | parts
    (folder / "tokenizer.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "parts",
    [
        {"model": BPE | {"vocab": {"a": 0, "b": 1}}},
        {"model": BPE | {"continuing_subword_prefix": "#" * 10}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    ],
    ids=["a merge without its token", "a prefix longer than a token", "a table of characters"],
)
def test_a_panic_on_loading_is_one_sentence(
    tiny_folder: Path, tmp_path: Path, parts: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = with_tokenizer(tiny_folder, tmp_path / "panics", **parts)
    with pytest.raises(ValueError, match=r"cannot load the tokenizer in .*/panics: .*; `tokenizer` can name") as caught:
        load(str(folder))
    assert is_panic(caught.value.__cause__)
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("parts", "text", "reason"),
    [
        ({"pre_tokenizer": SPLIT}, "a" * 300 + "b", "retry-limit"),
        ({"post_processor": TEMPLATE}, "ab", "no entry found"),
        ({"model": BPE | {"unk_token": "<unk>"}}, "c", "not found in the vocabulary"),  # an exception, not a panic
    ],
    ids=["an expression", "a template", "an unknown token"],
)
def test_a_panic_on_encoding_is_one_sentence(
    tiny_folder: Path, tmp_path: Path, parts: dict[str, Any], text: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = with_tokenizer(tiny_folder, tmp_path / "panics", **parts)
    tokenizer = load(str(folder)).tokenizer
    with pytest.raises(ValueError, match=rf"the tokenizer of .*/panics cannot read '.*': .*{reason}"):
        tokenize(tokenizer, text, special=True)
    assert "panicked" not in capfd.readouterr().err


def test_a_command_says_it_in_one_line(run, tiny_folder: Path, tmp_path: Path) -> None:
    folder = with_tokenizer(tiny_folder, tmp_path / "panics", model=BPE | {"vocab": {"a": 0, "b": 1}})
    refused(run("predict", folder, "ab"), str(folder), "range end index 2 out of range")


def test_other_words_on_standard_error_are_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_panic():
        os.write(2, b"a true error\n")
    assert capfd.readouterr().err == "a true error\n"
    with pytest.raises(KeyError), quiet_panic():
        fail_aloud()
    assert capfd.readouterr().err == "another\n"


def fail_aloud() -> None:
    os.write(2, b"another\n")
    raise KeyError
