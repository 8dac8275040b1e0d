"""LoRA (Hu et al. 2021) with PEFT, and the final model of a run."""

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
    """Return the model with LoRA updates on every linear layer except the head; only these are trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=ALPHA * rank, target_modules="all-linear")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def keep_model(folder: RunFolder, checkpoint: Path, settings: TrainSettings, consent: Consent) -> None:
    """Copy the model of a checkpoint to `model`. LoRA updates are merged into it, and stay in `adapter` too."""
    with folder.replacing(MODEL if settings.lora is None else ADAPTER) as partial:
        shutil.copytree(checkpoint, partial, ignore=shutil.ignore_patterns(*TRAINING_ONLY))
    if settings.lora is None:
        return
    from peft import PeftModel

    from cynosure.system.quiet import quiet_transformers

    initial = load_init(settings, consent)
    merged = PeftModel.from_pretrained(initial.model, folder / ADAPTER, trust_remote_code=False).merge_and_unload()
    with folder.replacing(MODEL) as partial:
        with quiet_transformers():
            merged.save_pretrained(partial)
        initial.tokenizer.save_pretrained(partial)


def name_base(adapter: Path, settings: TrainSettings, digest: str | None) -> None:
    """Record in an adapter's folder its base model: the name given as `init`, and the digest of its weights."""
    path = adapter / ADAPTER_CONFIG
    values = json.loads(path.read_bytes()) | {BASE: settings.init}
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())
    if digest is not None:
        write_whole(adapter / BASE_DIGEST, (json.dumps({"sha256": digest}) + "\n").encode())
