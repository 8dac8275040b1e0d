"""Every weight of a model shared out among the processes: PyTorch's FSDP2, as transformers applies it."""

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

OPTIMIZER = "optimizer"  # the folder in a checkpoint to which each process writes its part
METADATA = ".metadata"  # in it: a pickle of what each part holds
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
    """The model, of whose weights each process keeps its part from now on; every process must call this.

    Its layers are gathered one after another when they are needed. ValueError for a device that transformers would not
    put them on, ImportError where it is too old to.
    """
    try:
        from transformers.distributed.configuration_utils import DistributedConfig
        from transformers.distributed.parallel_utils import replace_layer_number_by_wildcard as general
    except ImportError as error:
        raise ImportError("fsdp needs transformers 5.23 or newer: pip install -U transformers") from error
    kind = torch.accelerator.current_accelerator()
    if device.type != (kind.type if kind else "cpu"):
        raise ValueError(f"fsdp shares weights among the accelerators of this machine, not on {device.type}")
    names = {module: general(name) for name, module in model.named_modules()}
    model.fsdp_plan = {names[module]: "free_full_weight" for module in gathered_apart(model)}
    config, _, mesh = model.prepare_distribute_model(DistributedConfig(fsdp_size=dist.get_world_size()))
    return model.maybe_distribute_model(model, config, mesh)


def gathered_apart(model: Any) -> list[Any]:
    """What is gathered by itself when it is needed; all else is gathered together, for the whole of a step.

    transformers' own plans name the layers of some architectures alone, and fail where the head is tied. An embedding
    that is the head too it leaves out.
    """
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    return [*layers, model.get_input_embeddings()]


def is_sharded(model: Any) -> bool:
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def whole(model: Any) -> Any:
    """A copy of a sharded model that has all its weights, in every process; every process must call this."""
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    config = copy.deepcopy(model.config)
    del config.distributed_config
    found = type(model).from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32, trust_remote_code=False
    )
    found.generation_config = model.generation_config
    return found.to(model.device).eval()


def load_weights(model: Any, checkpoint: Path) -> None:
    """Give a model, sharded or not, the weights of one in Hugging Face's format; every process must call this.

    By transformers' own loading: what is saved may be named and cut otherwise than what is trained, as experts are.
    """
    kind: Any = type(model)
    trusted = kind.__module__.startswith("transformers_modules.")  # as it was loaded; a checkpoint's code is not
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
    """Each process writes its part; every process must call this."""
    from transformers.distributed.checkpoint import save_optimizer_distributed

    save_optimizer_distributed(model, optimizer, str(checkpoint / OPTIMIZER))


def load_optimizer(model: Any, optimizer: Any, checkpoint: Path) -> None:
    """As many processes as there are now read what was written by as many as there were.

    Raises Damaged where it cannot be read; no code that is in it is run.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from transformers.distributed.checkpoint import load_optimizer_distributed

    place = checkpoint / OPTIMIZER
    with reading(place / METADATA, way_out_of(checkpoint)), (place / METADATA).open("rb") as file:
        Plain(file).load()
    try:
        with tensors_alone():
            load_optimizer_distributed(model, optimizer, str(place))
    except CheckpointException as error:  # which is no Exception
        reason = next((reason_of(failure) for failure, _ in error.failures.values()), "unknown")
        raise Damaged(f"{place} cannot be read: {reason}", way_out_of(checkpoint)) from error


@contextmanager
def tensors_alone() -> Iterator[None]:
    """Let torch.load run no code, whatever its callers ask for: PyTorch's own reading of parts asks for it."""
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
    """Reads a pickle that only describes tensors. PyTorch would run any code in the one it is about to read."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in DESCRIBING:
            raise ValueError(f"it names {module}.{name}, which describes no tensors")
        return super().find_class(module, name)
