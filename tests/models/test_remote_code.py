"""A model's folder is data: nothing in it runs, asks, or leads to another place, unless its code is trusted."""

import builtins
import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cynosure.models import load
from cynosure.models.remote_code import code_sha256
from tests.cli.test_bad_input import refused
from tests.cli.test_cli import run as run

Change = Callable[..., Path]
CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({ran!r}).touch()


class OddConfig(LlamaConfig):
    model_type = "odd"


class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig


class OddTokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL_MAP = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}
TOKENIZER_MAP = {"AutoTokenizer": [None, "odd.OddTokenizer"]}


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that code of a folder makes when it runs."""
    return tmp_path / "ran"


@pytest.fixture
def change(tmp_path: Path, tiny_folder: Path) -> Change:
    """A copy of the tiny model with other values in one of its JSON files."""

    def change(file: str = "config.json", **values: Any) -> Path:
        folder = tmp_path / "odd-model"
        if not folder.exists():
            shutil.copytree(tiny_folder, folder)
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return folder

    return change


@pytest.fixture
def coded(change: Change, ran: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model of a type of its own, and the code for it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked on standard input"))
    folder = change(model_type="odd", auto_map=MODEL_MAP)
    (folder / "odd.py").write_text(CODE.format(ran=str(ran)))
    return folder


def test_code_of_a_folder_does_not_run(coded: Path, ran: Path) -> None:
    with pytest.raises(ValueError, match=r"needs Python code of its own, odd\.py, .* `trust_remote_code=True`$"):
        load(str(coded))
    assert not ran.exists()


def test_the_text_answers_no_question(run, coded: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.TextIOWrapper(io.BytesIO(b"y\nsome text\n"))
    monkeypatch.setattr(sys, "stdin", text)
    refused(run("score", coded, "-"), "needs Python code of its own, odd.py", "--trust-remote-code")
    assert not ran.exists()
    assert text.read() == "y\nsome text\n"


def test_code_of_a_tokenizer_does_not_run(change: Change, coded: Path, ran: Path, tiny_folder: Path) -> None:
    change(model_type="llama", auto_map={})
    change("tokenizer_config.json", auto_map=TOKENIZER_MAP, tokenizer_class="OddTokenizer")
    for name, tokenizer in ((coded, None), (tiny_folder, str(coded))):
        with pytest.raises(ValueError, match=r"odd-model needs Python code of its own, odd\.py, which is not run"):
            load(str(name), tokenizer=tokenizer)
    change("tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")  # which transformers has
    assert load(str(coded)).code == {}
    (coded / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot load the tokenizer in .*odd-model: .*`tokenizer` can name another"):
        load(str(coded))  # and not for its code
    assert not ran.exists()


def test_code_is_not_run_where_transformers_has_the_class(change: Change, coded: Path, ran: Path) -> None:
    loaded = load(str(change(model_type="llama")))
    assert not ran.exists()
    assert type(loaded.model).__module__.startswith("transformers.models.llama")


def test_trusted_code_runs_and_is_pinned(change: Change, coded: Path, ran: Path, tiny_folder: Path) -> None:
    loaded = load(str(coded), trust_remote_code=True)
    assert ran.exists()
    assert type(loaded.model).__name__ == "OddForCausalLM"
    assert loaded.code == {"model": f"sha256:{code_sha256(coded)}"}
    change("tokenizer_config.json", auto_map=TOKENIZER_MAP)
    loaded = load(str(tiny_folder), tokenizer=str(coded), trust_remote_code=True)
    assert type(loaded.tokenizer).__name__ == "OddTokenizer"
    assert loaded.code == {"tokenizer": f"sha256:{code_sha256(coded)}"}
    assert load(str(tiny_folder), trust_remote_code=True).code == {}


def test_a_digest_of_code_is_of_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x")
    found = [code_sha256(tmp_path)]
    (tmp_path / "config.json").write_text("{}")
    assert code_sha256(tmp_path) == found[0]
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "b.py").write_text("y")
    found.append(code_sha256(tmp_path))
    (tmp_path / "part" / "b.py").rename(tmp_path / "part" / "c.py")
    found.append(code_sha256(tmp_path))
    assert len(set(found)) == 3


def test_a_run_goes_on_with_the_same_code_alone(run, coded: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat.\n" * 5)
    command = ["score", coded, tmp_path / "text.txt", "--out", tmp_path / "run", "--trust-remote-code"]
    assert run(*command).status == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model"]["code"] == {"model": f"sha256:{code_sha256(coded)}"}
    assert run(*command).status == 0
    (coded / "more.py").write_text("")
    refused(run(*command), "holds another run", "model.code.model")
    other = ["score", tiny_folder, tmp_path / "text.txt", "--out", tmp_path / "other", "--trust-remote-code"]
    assert run(*other).status == 0
    assert "code" not in json.loads((tmp_path / "other" / "manifest.json").read_text())["model"]


@pytest.mark.parametrize("verb", ["predict", "check"])
def test_the_other_commands_take_the_option(run, coded: Path, verb: str) -> None:
    refused(run(verb, coded, "some text"), "needs Python code of its own")
    assert run(verb, coded, "some text", "--trust-remote-code").status in (0, 1)


def test_two_models_with_code_are_compared(run, coded: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat.\n" * 5)
    refused(run("compare", coded, tiny_folder, tmp_path / "text.txt"), "needs Python code of its own")
    assert run("compare", coded, tiny_folder, tmp_path / "text.txt", "--trust-remote-code").status == 0


def test_code_of_another_repository_is_not_fetched(change: Change, coded: Path) -> None:
    folder = change(auto_map={name: f"other/place--{reference}" for name, reference in MODEL_MAP.items()})
    for trust in (False, True):
        with pytest.raises(
            ValueError, match=r"needs Python code of its own|takes its code from another repo.*other/pl"
        ):
            load(str(folder), trust_remote_code=trust)


def test_a_branch_of_the_hub_is_pinned_to_its_commit(coded: Path, tmp_path: Path, monkeypatch) -> None:
    commit, hub = "0123456789" * 4, tmp_path / "hub"
    home = hub / "models--someone--odd"
    shutil.copytree(coded, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    with pytest.raises(ValueError, match=r"someone/odd needs Python code of its own, odd\.py"):
        load("someone/odd")
    for revision in (None, "main", commit):
        loaded = load("someone/odd", revision=revision, trust_remote_code=True)
        assert loaded.code == {"model": f"commit:{commit}"}


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("value", ["kernels-community/flash-attn2", "someone/kernel@main:attention"])
def test_kernels_of_the_hub_are_not_fetched(change: Change, name: str, value: str, monkeypatch) -> None:
    def fetch(*_: Any, **__: Any) -> None:
        pytest.fail("fetched a kernel")

    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetch)
    assert load(str(change(**{name: value}))).model.config._attn_implementation == "sdpa"


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_weights_run_nothing(change: Change, ran: Path, zipped: bool) -> None:
    folder = change()
    (folder / "model.safetensors").unlink()
    bomb = folder / "pytorch_model.bin"
    torch.save({"lm_head.weight": Bomb(ran)}, bomb) if zipped else bomb.write_bytes(pickle.dumps(Bomb(ran)))
    with pytest.raises(ValueError, match="odd-model: its weights are a pickle that holds more than tensors"):
        load(str(folder))
    assert not ran.exists()
    pickle.loads(pickle.dumps(Bomb(ran)))
    assert ran.exists()  # so that it would have shown


def test_pickled_tensors_are_read(change: Change) -> None:
    folder = change()
    expected = load(str(folder)).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(expected, folder / "pytorch_model.bin")
    assert all(torch.equal(x, expected[name]) for name, x in load(str(folder)).model.state_dict().items())


def test_an_adapter_beside_a_model_is_not_applied(change: Change, ran: Path) -> None:
    folder = change()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "someone/else", "target_modules": ["q_proj"]})
    )
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(ran)))
    with pytest.raises(ValueError, match=r"odd-model holds a model and an adapter_config\.json: merge the adapter"):
        load(str(folder))
    assert not ran.exists()


def test_weights_outside_the_folder_are_not_read(change: Change) -> None:
    folder = change()
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = folder / "model.safetensors.index.json"
    for place in ("../outside.safetensors", str(folder.parent / "outside.safetensors"), 5):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"lm_head.weight": place}}))
        with pytest.raises(ValueError, match=r"index\.json names '.*', which is not a file inside the folder"):
            load(str(folder))
    index.unlink()
    with pytest.raises(ValueError, match=r"config\.json names '\.\./outside.*', which is not a file inside the folder"):
        load(str(change(transformers_weights="../outside.safetensors")))
