"""Whatever stands in a model's files, it is scored, or refused in one sentence before anything large is allocated."""

import resource
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cynosure.measure import score
from cynosure.models import load
from tests.cli.test_bad_input import refused
from tests.cli.test_cli import run as run
from tests.models.test_remote_code import Change
from tests.models.test_remote_code import change as change

TEXT = "the cat sat on the mat. " * 20
NAN, INF = float("nan"), float("inf")
ODD: dict[str, list[Any]] = {
    "num_hidden_layers": [-1, 0, 10**9, 10**30, "2", None, 2.5, [2], 3, True],
    "hidden_size": [0, -16, 10**12, 2**31, 2**17, "16", None, 16.0],
    "vocab_size": [-5, 0, 10**12, None, 299],
    "num_attention_heads": [0, -2, 3, 10**9, None, 1],
    "num_key_value_heads": [0, -1, 3, 10**6],
    "head_dim": [-8, 0, 7, 10**9],
    "intermediate_size": [0, -32, 10**12, 2**20],
    "max_position_embeddings": [-1, 0, 10**18, None, "64"],
    "rms_norm_eps": [-1, NAN, INF, "1e-6", 1e300],
    "rope_theta": [0, -1.0, NAN],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 0},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 0},
        {"rope_type": "nonsense"},
        {"rope_type": "yarn"},
        [],
        "x",
    ],
    "layer_types": [["full_attention"], ["a", "b"], [None, None], [], "x", ["full_attention"] * 10**5],
    "model_type": ["../../x", "x" * 10**5, "\x1b[31m", "", None, [], {}, "gpt2", "mamba", "llama4", "t5"],
    "hidden_act": ["nonsense", "__class__", None, 5],
    "tie_word_embeddings": ["x", None],
    "pad_token_id": [10**9, "x"],
    "num_labels": [10**9],
    "dtype": ["nonsense", "int8"],
    "sub_configs": [{}],
    "attribute_map": [5],
    "auto_map": [5],
    "per_layer_config": [5],
    "quantization_config": [5, {"quant_method": ["x"]}],
    "transformers_weights": [5, "nothing.safetensors"],
}
FINE: dict[str, list[Any]] = {
    "return_dict": [False],
    "output_attentions": [True],
    "pad_token_id": [-1],
    "eos_token_id": [10**9, [1, 2]],
    "architectures": ["x", [5]],
    "auto_map": [[None]],
    "rope_parameters": [None],
    "quantization_config": [{"quant_method": "nonsense"}],
}


def cases(values: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(name, x, id=f"{name}={x!r:.30}") for name, odd in values.items() for x in odd]


@contextmanager
def little_memory(n_bytes: int = 1 << 30) -> Iterator[None]:
    """Room for this much more address space than is in use already."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(("name", "value"), cases(ODD))
def test_an_odd_configuration_is_refused_in_one_sentence(change: Change, name: str, value: Any) -> None:
    folder = change(**{name: value})
    with little_memory(), pytest.raises(ValueError, match=r"odd-model") as caught:
        score(load(str(folder)), [TEXT])
    message = str(caught.value)
    assert str(folder) in message or message.startswith(
        "odd-model has finite weights and a buffer that is not finite: "
    )
    assert message.isprintable()
    assert len(message) < 700
    assert "report!" not in message  # transformers' own, which is not shown


@pytest.mark.parametrize(("name", "value"), cases(FINE))
def test_what_changes_nothing_is_scored(change: Change, tiny_folder: Path, name: str, value: Any) -> None:
    with little_memory():
        found = score(load(str(change(**{name: value}))), [TEXT])
    assert found.nats == score(load(str(tiny_folder)), [TEXT]).nats


def test_a_number_is_named_by_its_place(change: Change) -> None:
    with pytest.raises(ValueError, match=r"rope_parameters\.rope_theta is 0, and must be positive: fix its config"):
        load(str(change(rope_parameters={"rope_type": "default", "rope_theta": 0})))
    plain = change(hidden_size=2**17, rope_parameters=None)
    with pytest.raises(ValueError, match=r"describes a model of [\d,]+ weights, but its files hold 14,\d+"):
        load(str(plain))


def test_the_size_is_that_of_pickled_weights_too(change: Change) -> None:
    folder = change()
    torch.save(load(str(folder)).model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with little_memory(), pytest.raises(ValueError, match=r"describes a model of .* weights, but its files hold"):
        load(str(change(hidden_size=2**17)))


def damaged(folder: Path) -> dict[str, bytes]:
    """By the file and a number, what is written in the place of one of the files of a model."""
    weights = (folder / "model.safetensors").read_bytes()
    header = weights[8 : 8 + struct.unpack("<Q", weights[:8])[0]]
    beyond = header.replace(b"[0,", b"[9,", 1)
    return {
        "config.json 0": b"",
        "config.json 1": b"[]",
        "config.json 2": b"\xff\xfe",
        "config.json 3": b'{"a": ' + b"[" * 100_000,
        "config.json 4": b'{"a": "' + b"x" * (1 << 24) + b'"}',
        "model.safetensors 0": b"",
        "model.safetensors 1": struct.pack("<Q", 1 << 60) + weights[8:],
        "model.safetensors 2": struct.pack("<Q", len(beyond)) + beyond + weights[8 + len(header) :],
        "model.safetensors 3": weights[:-1],
        "model.safetensors 4": b"PK\x03\x04" * 1000,
        "model.safetensors.index.json 0": b"{}",
        "model.safetensors.index.json 1": b'{"weight_map": []}',
        "model.safetensors.index.json 2": b'{"metadata": {}, "weight_map": {"a": "none.safetensors"}}',
        "tokenizer.json 0": b"{",
        "tokenizer.json 1": b"[]",
        "tokenizer.json 2": b'{"version": "1.0", "model": {"type": "nonsense"}}',
        "tokenizer_config.json 0": b"[1]",
        "tokenizer_config.json 1": b"{",
    }


def test_damaged_files_are_named(run, tiny_folder: Path, tmp_path: Path) -> None:
    for name, data in damaged(tiny_folder).items():
        folder = tmp_path / name.replace(" ", "-")
        shutil.copytree(tiny_folder, folder)
        if "index" in name:
            (folder / "model.safetensors").unlink()
        (folder / name.partition(" ")[0]).write_bytes(data)
        with little_memory():
            refused(run("predict", folder, "some text"), str(folder))


def test_a_generation_config_changes_nothing(tiny_folder: Path, change: Change) -> None:
    folder = change()
    (folder / "generation_config.json").write_text('{"max_length": -5, "temperature": "x", "custom_generate": "a/b"}')
    assert score(load(str(folder)), [TEXT]).nats == score(load(str(tiny_folder)), [TEXT]).nats
    for data in ("{", "[]", "[" * 100_000):
        (folder / "generation_config.json").write_text(data)
        with pytest.raises(ValueError, match=r"odd-model: generation_config\.json is not"):
            load(str(folder))
