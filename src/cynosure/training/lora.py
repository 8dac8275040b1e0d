"""Low-rank updates of a model that is there (Hu et al. 2021), by PEFT; and the model that a run leaves behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from cynosure.models.adapter import BASE, BASE_DIGEST
from cynosure.models.remote_code import ADAPTER_CONFIG
from cynosure.system.files import write_whole
from cynosure.training.begin import Consent, load_init
from cynosure.training.folder import MODEL, TRAINING_ONLY, RunFolder
from cynosure.training.settings import TrainSettings

ADAPTER = "adapter"
ALPHA = 2  # times the rank


def with_updates(model: Any, rank: int, seed: int) -> Any:
    """The model with updates of this rank to every linear layer but its head, which alone are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=ALPHA * rank, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def keep_model(folder: RunFolder, checkpoint: Path, settings: TrainSettings, consent: Consent) -> None:
    """Put the model of a checkpoint where users look for it, its updates worked in; they are kept beside it."""
    with folder.replacing(MODEL if settings.lora is None else ADAPTER) as made:
        shutil.copytree(checkpoint, made, ignore=shutil.ignore_patterns(*TRAINING_ONLY))
    if settings.lora is None:
        return
    from peft import PeftModel

    from cynosure.system.quiet import quiet_transformers

    started = load_init(settings, consent)
    merged = PeftModel.from_pretrained(started.model, folder / ADAPTER, trust_remote_code=False).merge_and_unload()
    with folder.replacing(MODEL) as made:
        with quiet_transformers():
            merged.save_pretrained(made)
        started.tokenizer.save_pretrained(made)


def name_base(adapter: Path, settings: TrainSettings, digest: str | None) -> None:
    """Let an adapter's folder say what it is for: the name that --init was given, and the digest of those weights."""
    path = adapter / ADAPTER_CONFIG
    values = json.loads(path.read_bytes()) | {BASE: settings.init}
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())
    if digest is not None:
        write_whole(adapter / BASE_DIGEST, (json.dumps({"sha256": digest}) + "\n").encode())
