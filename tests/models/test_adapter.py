"""Adapters of PEFT as models: their loss, their dtype, and what is said where they cannot be loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cynosure
from tests.tiny import byte_tokenizer, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's own, as the tests make adapters
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapter(base: Path, out: Path, name: str | None = None, **options: Any) -> Any:
    """An adapter with random updates in a folder; the unmerged model, in float64, that it stands for."""
    from peft import LoraConfig, get_peft_model

    model = tiny_model().from_pretrained(base)
    made = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", **options))
    generator = torch.Generator().manual_seed(0)
    for key, tensor in made.named_parameters():
        if "lora_B" in key:
            tensor.data.normal_(0, 0.3, generator=generator)
    made.save_pretrained(out)
    change(out, base_model_name_or_path=name or str(base))
    return made.double().eval()


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_logits_are_those_of_the_unmerged_model(base: Path, tmp_path: Path, rslora: bool) -> None:
    unmerged = adapter(base, tmp_path / "mine", use_rslora=rslora)
    loaded = cynosure.load(str(tmp_path / "mine"), device="cpu")
    assert (loaded.name, loaded.dtype) == ("mine", "float32")
    assert str(base) in loaded.notes[-1]
    with torch.no_grad():
        expected, found = unmerged(IDS).logits, loaded.model(IDS).logits
        plain = cynosure.load(str(base), device="cpu").model(IDS).logits
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert (plain - expected).abs().max() > 0.01


def test_auto_is_the_wider_dtype(base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(base, half)
    tiny_model().bfloat16().save_pretrained(half)
    adapter(half, tmp_path / "mine")
    assert cynosure.load(str(tmp_path / "mine")).dtype == "float32"
    assert cynosure.load(str(tmp_path / "mine"), dtype="bfloat16").dtype == "bfloat16"
    path = tmp_path / "mine" / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    assert cynosure.load(str(tmp_path / "mine")).dtype == "bfloat16"


def test_a_base_beside_the_adapter(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(base, tmp_path / "base")
    adapter(base, tmp_path / "mine", "../base")
    monkeypatch.chdir("/")
    assert cynosure.load(str(tmp_path / "mine")).name == "mine"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"base_model_name_or_path": "/nowhere/at-all"}, "is an adapter for /nowhere/at-all, which cannot be loaded"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "."}, "leads back to .* as its base"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, "adds virtual tokens"),
        ({"r": 3}, "is for another model than"),
        ({"target_modules": ["q_proj"]}, "has no counterpart"),
    ],
)
def test_what_cannot_be_loaded(base: Path, tmp_path: Path, values: dict[str, Any], says: str) -> None:
    adapter(base, tmp_path / "mine")
    change(tmp_path / "mine", **values)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as raised:
        cynosure.load(str(tmp_path / "mine"))
    assert "\n" not in str(raised.value)


def test_bases_in_a_circle(base: Path, tmp_path: Path) -> None:
    for mine, other in (("a", "b"), ("b", "a"), ("c", "a")):
        adapter(base, tmp_path / mine)
        change(tmp_path / mine, base_model_name_or_path=f"../{other}")
    for name in "abc":
        with pytest.raises(ValueError, match=f"{name}.adapter_config.json leads back to .* as its base"):
            cynosure.load(str(tmp_path / name))


def test_every_weight_has_a_gradient(base: Path, tmp_path: Path) -> None:
    """As of any model: `check` and a full training need them, and PEFT freezes the base."""
    adapter(base, tmp_path / "mine")
    model = cynosure.load(str(tmp_path / "mine")).model
    assert all(weight.requires_grad for weight in model.parameters())


def test_weights_that_are_missing(base: Path, tmp_path: Path) -> None:
    adapter(base, tmp_path / "mine")
    (tmp_path / "mine" / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors is missing"):
        cynosure.load(str(tmp_path / "mine"))
