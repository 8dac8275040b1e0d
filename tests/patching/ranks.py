"""One of two processes that train together: what `tests/patching/test_distributed.py` starts by torchrun."""

import json
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

import cynosure
from cynosure.patching.verify import attribute
from tests.patching.test_patch import IGNORED, SIZES, batch, family
from tests.patching.trainers import trained_and_evaluated

FAMILIES = ["Llama", "Llama, tied", "Gemma 2", "Phi, biased"]
WRAPPINGS = ["DDP", "DDP, unused parameters", "FSDP2", "FSDP2, head by itself", "FSDP2, patched after"]
WRAPPINGS += ["FSDP1", "FSDP1, flat weights", "FSDP1, head by itself", "FSDP1, patched after"]
WRAPPINGS += ["DDP, accumulated", "FSDP2, accumulated", "FSDP2, head by itself, accumulated", "FSDP1, accumulated"]
BATCHES = ["equal", "unequal", "one rank ignores all"]


def inputs(kind: str) -> dict[str, Tensor]:
    """Four rows, two for each process."""
    parts = [batch(0), batch(1)]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if kind == "unequal":
        found["labels"][2:, 4:] = IGNORED
    if kind == "one rank ignores all":
        found["labels"][2:] = IGNORED
    return found


def wrapped(model: Any, kind: str) -> Any:
    """The model as these tools wrap it, patched before or after."""
    if "patched after" not in kind:
        cynosure.patch(model)
    if kind.startswith("FSDP1"):
        return in_fsdp1(model, kind)
    if kind.startswith("DDP"):
        return DistributedDataParallel(model, find_unused_parameters="unused" in kind)
    for layer in model.model.layers:
        fully_shard(layer)
    if "head by itself" in kind and not model.config.tie_word_embeddings:
        fully_shard(model.lm_head)
    fully_shard(model)
    if kind == "FSDP2, patched after":
        cynosure.patch(model)
        if not all(isinstance(weight, DTensor) for weight in model.parameters()):
            raise RuntimeError("an optimizer made now would not hold the weights that are trained")
    return model


def in_fsdp1(model: Any, kind: str) -> Any:
    """The model in units of FSDP1: its layers, the rest, and its head where that has weights of its own."""
    units = list(model.model.layers)
    if kind == "FSDP1, head by itself" and not model.config.tie_word_embeddings:
        units.append(model.lm_head)

    def is_unit(module: Any, recurse: bool, nonwrapped_numel: int) -> bool:
        return recurse or any(module is unit for unit in units)

    model = FullyShardedDataParallel(
        model, auto_wrap_policy=is_unit, use_orig_params="flat" not in kind, device_id=torch.device("cpu")
    )
    if kind == "FSDP1, patched after":
        cynosure.patch(model)
    return model


def gradients(wrapper: Any) -> dict[str, Tensor]:
    """Whole gradients by name."""
    if isinstance(wrapper, FullyShardedDataParallel):  # of flat weights, seen by what a step takes off
        before = weights(wrapper)
        torch.optim.SGD(wrapper.parameters(), lr=1.0).step()
        return {name: before[name] - after for name, after in weights(wrapper).items()}
    found = {n.removeprefix("module."): p.grad for n, p in wrapper.named_parameters() if p.grad is not None}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g.clone() for n, g in found.items()}


def weights(wrapper: Any) -> dict[str, Tensor]:
    with FullyShardedDataParallel.summon_full_params(wrapper):
        return {n.replace("_fsdp_wrapped_module.", ""): p.detach().clone() for n, p in wrapper.named_parameters()}


def synchronized(wrapper: Any, last: bool) -> AbstractContextManager[None]:
    """In it a backward adds up the gradients of all processes only if it is the last of a step."""
    if isinstance(wrapper, FSDPModule):
        wrapper.set_requires_gradient_sync(last)
        return nullcontext()
    return nullcontext() if last else wrapper.no_sync()


def step(name: str, wrapping: str, which: str) -> dict[str, Tensor]:
    """The loss of all processes' tokens and its gradients, made twice: whatever is kept must serve again."""
    rank, whole = dist.get_rank(), inputs(which)
    model = family(name)
    wrapper = wrapped(model, wrapping)
    own = {key: value[2 * rank : 2 * rank + 2] for key, value in whole.items()}
    n_items = (whole["labels"][:, 1:] != IGNORED).sum()
    size = 1 if "accumulated" in wrapping else 2  # of a batch
    for _ in range(2):
        wrapper.zero_grad()
        loss = torch.zeros(())
        for first in range(0, 2, size):
            part = {key: value[first : first + size] for key, value in own.items()}
            with synchronized(wrapper, first + size == 2):
                made = wrapper(**part, num_items_in_batch=n_items, use_cache=False).loss * dist.get_world_size()
                made.backward()
            loss += made.detach()
    if model._cynosure_patch.made_by:
        raise RuntimeError(f"{name}, {wrapping}: {model._cynosure_patch.made_by} made full logits")
    loss /= dist.get_world_size()
    dist.all_reduce(loss)
    found = {"loss": loss} | gradients(wrapper)
    wrapper.eval()
    with torch.no_grad():
        wrapper(**own, use_cache=False)
    if model._cynosure_patch.made_by:
        raise RuntimeError(f"{name}, {wrapping}: {model._cynosure_patch.made_by} made full logits in evaluation")
    return found


def step_outside(name: str) -> dict[str, Tensor]:
    """The gradients of a loss that is computed from the output of DDP, which looks for parameters that it misses."""
    rank, whole = dist.get_rank(), inputs("equal")
    model = family(name)
    wrapper = wrapped(model, "DDP, unused parameters")
    own = {key: value[2 * rank : 2 * rank + 2] for key, value in whole.items() if key != "labels"}
    for _ in range(2):
        wrapper.zero_grad()
        with attribute(model._cynosure_patch, "without_labels", True):
            logits = wrapper(**own, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), own["input_ids"].flatten()).backward()
    if model._cynosure_patch.made_by:
        raise RuntimeError(f"{name}: {model._cynosure_patch.made_by} made full logits")
    return gradients(wrapper)


def refusal_of_a_tensor_parallel_head(folder: Path) -> str:
    """In evaluation transformers multiplies by a part of its weight, of fewer classes."""
    if dist.get_rank() == 0:
        config = LlamaConfig(**SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2})
        LlamaForCausalLM(config).save_pretrained(folder / "model")
    dist.barrier()
    model = LlamaForCausalLM.from_pretrained(folder / "model", tp_plan="auto")
    with pytest.raises(ValueError, match="cannot be patched") as error:
        cynosure.patch(model)
    return str(error.value)


def main(folder: Path) -> None:
    from tests.patching.test_trainer import trainer_of
    from tests.patching.test_trl import sft_trainer_of

    dist.init_process_group("gloo")
    cases = [tuple(case) for case in json.loads((folder / "cases.json").read_text())]
    found = {
        "steps": {case: step(*case) for case in cases},
        "outside": {name: step_outside(name) for name in FAMILIES[:2]},
        "tensor-parallel": refusal_of_a_tensor_parallel_head(folder),
        "Trainer": trained_and_evaluated(trainer_of(folder, rows_per_process=2)),
        "SFTTrainer": trained_and_evaluated(sft_trainer_of(folder, rows_per_process=2)),
    }
    if dist.get_rank() == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
