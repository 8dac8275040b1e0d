"""Shard the weights of a model over the processes: PyTorch's FSDP2, as transformers applies it."""

import copy
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from cynosure.models import load
from cynosure.training.integrity import Damaged, reading, reason_of, way_out_of

OPTIMIZER = "optimizer"  # folder in a checkpoint; each process writes its part there
METADATA = ".metadata"  # file in that folder: a pickle that describes the parts
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
DESCRIBING = {
    *(("torch", name) for name in ("Size", "float32", "int64", "device")),
    *(("torch.distributed.checkpoint.metadata", name) for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"), ("pathlib", "WindowsPath"), ("pathlib._local", "PosixPath"),  # the last of Python 3.13
}  # fmt: skip


def shard(model: Any, device: torch.device) -> Any:
    """Return the model with its weights sharded: each process keeps its part. Every process must call this.

    Layers are gathered one after another when they are needed. Raises ValueError for a device that transformers would
    not use, ImportError if transformers is too old.
    """
    try:
        from transformers.distributed.configuration_utils import DistributedConfig
        from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard as general
    except ImportError as error:
        raise ImportError("fsdp needs transformers 5.23 or newer: pip install -U transformers") from error
    kind = torch.accelerator.current_accelerator()
    if device.type != (kind.type if kind else "cpu"):
        raise ValueError(f"fsdp shards weights over the accelerators of this machine, not on {device.type}")
    names = {module: general(name) for name, module in model.named_modules()}
    model.fsdp_plan = {names[module]: "free_full_weight" for module in gathered_apart(model)}
    config, _, mesh = model.prepare_distribute_model(DistributedConfig(fsdp_size=dist.get_world_size()))
    return model.maybe_distribute_model(model, config, mesh)


def gathered_apart(model: Any) -> list[Any]:
    """Return the modules that are gathered one by one when needed; the others are gathered for a whole step.

    transformers' own plans name only the layers of some architectures, and fail if the head is tied. They also leave
    out an embedding that is tied to the head.
    """
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    return [*layers, model.get_input_embeddings()]


def is_sharded(model: Any) -> bool:
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def whole(model: Any) -> Any:
    """Return a copy of a sharded model with all its weights. Every process must call this."""
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    config = copy.deepcopy(model.config)
    del config.distributed_config
    gathered = type(model).from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32, trust_remote_code=False
    )
    gathered.generation_config = model.generation_config
    return gathered.to(model.device).eval()


def load_weights(model: Any, checkpoint: Path) -> None:
    """Load the weights of a checkpoint in Hugging Face's format. Every process must call this.

    transformers does the loading: names and shapes on disk may differ from those in training, as for experts.
    """
    kind: Any = type(model)
    # The model's code was trusted when it was loaded; a checkpoint's code never is.
    trusted = kind.__module__.startswith("transformers_modules.")
    with reading(checkpoint, way_out_of(checkpoint)):
        if trusted:
            weights = kind.from_pretrained(checkpoint, dtype=torch.float32, trust_remote_code=False).state_dict()
        else:
            weights = load(str(checkpoint), dtype="float32", device="cpu").model.state_dict()
        if not is_sharded(model):
            model.load_state_dict(weights)
    if is_sharded(model):
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))


def save_optimizer(model: Any, optimizer: Any, checkpoint: Path) -> None:
    """Save this process's part of the optimizer. Every process must call this."""
    from transformers.distributed.checkpoint import save_optimizer_distributed

    save_optimizer_distributed(model, optimizer, str(checkpoint / OPTIMIZER))


def load_optimizer(model: Any, optimizer: Any, checkpoint: Path) -> None:
    """Load the optimizer, also one that another number of processes wrote. Every process must call this.

    Raises Damaged if it cannot be read. Code in its files is never run.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from transformers.distributed.checkpoint import load_optimizer_distributed

    place = checkpoint / OPTIMIZER
    with reading(place / METADATA, way_out_of(checkpoint)), (place / METADATA).open("rb") as file:
        Plain(file).load()
    try:
        with tensors_alone():
            load_optimizer_distributed(model, optimizer, str(place))
    except CheckpointException as error:  # derives from BaseException
        reason = next((reason_of(failure) for failure, _ in error.failures.values()), "unknown")
        raise Damaged(f"{place} cannot be read: {reason}", way_out_of(checkpoint)) from error


@contextmanager
def tensors_alone() -> Iterator[None]:
    """Make torch.load run no code, whatever its caller asks for: PyTorch's reader of the parts would run it."""
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = before


class Plain(pickle.Unpickler):
    """Unpickles only descriptions of tensors. PyTorch would run any code in the file that it reads next."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in DESCRIBING:
            raise ValueError(f"it names {module}.{name}, which describes no tensors")
        return super().find_class(module, name)
