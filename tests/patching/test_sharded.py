"""Heads and models that DTensor, FSDP and DeepSpeed spread over processes, of which there is one here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from cynosure.patching import patch
from tests.patching.test_heads import refusal
from tests.patching.test_patch import assert_same, batch, family, step


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("gathered", [False, True])
def test_tensor_parallel_heads_are_refused(mesh: Any, gathered: bool) -> None:
    model = family("Llama")
    style = ColwiseParallel(output_layouts=Replicate()) if gathered else ColwiseParallel()
    parallelize_module(model, mesh, {"lm_head": style})
    assert refusal(model) == (
        "LlamaForCausalLM cannot be patched: its head is tensor-parallel (a DTensor with placements "
        "(Shard(dim=0),)): leave the head out of the parallel plan"
    )


@pytest.mark.filterwarnings("ignore")
def test_buffers_that_are_sharded(mesh: Any) -> None:
    model = family("Gemma 2")
    parallelize_module(model, mesh, {"model.embed_tokens": RowwiseParallel(input_layouts=Replicate())})
    assert type(model.model.embed_tokens.embed_scale) is DTensor
    with patch(model) as patched:
        model(**batch())
        assert patched.made_by == []


@pytest.mark.filterwarnings("ignore")
def test_adapted_models_that_fsdp_gathers_as_a_whole(mesh: Any) -> None:
    inner = family("Llama")
    model = get_peft_model(inner, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)).eval()
    own = step(model, **batch())
    for module in (*inner.model.layers, model):
        fully_shard(module, mesh=mesh)
    assert refusal(inner).endswith("its weights outside of it: patch the module that was passed to fully_shard")
    with patch(model) as patched:
        loss, gradients = step(model, **batch())
        assert patched.made_by == []
    assert_same(own, (loss, {name: gradient.full_tensor() for name, gradient in gradients.items()}))


@pytest.mark.filterwarnings("ignore")
def test_fsdp1_of_one_process_shards_nothing(mesh: Any) -> None:
    model = family("Llama")
    own = step(model, **batch())
    wrapper = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    with patch(wrapper) as patched:
        loss, gradients = step(wrapper, **batch())
        assert patched.made_by == []
    assert_same(own, (loss, {name.replace("_fsdp_wrapped_module.", ""): x for name, x in gradients.items()}))


@pytest.mark.parametrize("is_gone", [False, True])
def test_weights_that_deepspeed_shards_are_refused(is_gone: bool) -> None:
    model = family("Llama")
    model.lm_head.weight.ds_id = 7
    if is_gone:  # as outside of its forward
        model.lm_head.weight.data = torch.empty(0)
    assert refusal(model) == (
        "LlamaForCausalLM cannot be patched: its head is sharded by DeepSpeed ZeRO-3, which frees the weight after "
        "its own forward: use ZeRO-2 or FSDP"
    )
