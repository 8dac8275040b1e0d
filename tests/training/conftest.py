"""Models to fine-tune."""

from pathlib import Path

import pytest

from tests.lm.conftest import byte_tokenizer, tiny_model
from tests.lm.conftest import tiny_folder as tiny_folder


@pytest.fixture(scope="session")
def tiny_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 on disk, which drops out."""
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    tiny_model("GPT2", spread=0.02, resid_pdrop=0.2, embd_pdrop=0.2).save_pretrained(folder)
    byte_tokenizer(special={"bos_token": "<s>", "eos_token": "<s>"}).save_pretrained(folder)
    return folder
