"""Models to fine-tune; and what every run would measure anew."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from cynosure.training import peak
from tests.tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="session", autouse=True)
def _measured_once() -> Iterator[None]:
    """How fast the machine multiplies is measured by the first run alone: it takes longer than the run's own steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak, "peak_flops", functools.cache(peak.peak_flops))
        yield


@pytest.fixture(scope="session")
def tiny_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 on disk, which drops out."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    tiny_model("GPT2", spread=0.02, resid_pdrop=0.2, embd_pdrop=0.2).save_pretrained(folder)
    byte_tokenizer(special={"bos_token": "<s>", "eos_token": "<s>"}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mixture of experts on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny-mixtral"
    tiny_model("Mixtral", spread=0.02, num_local_experts=4, num_key_value_heads=2).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bloom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk that takes no positions."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bloom"
    tiny_model("Bloom").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
