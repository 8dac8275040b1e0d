"""Private parts of torch, transformers, accelerate and peft: the one place to look after an upgrade.

Tried with torch 2.13.0, transformers 5.23.0, accelerate 1.15.0 and peft 0.21.2. Functions are wrapped or named
below. These parts cannot be wrapped usefully, and are used where it says:

Overridden methods of transformers' Trainer, which has no public hooks for its checkpoints (training/loop.py):
`_save_checkpoint`, `_get_output_dir`, `_load_from_checkpoint`, `_save_optimizer_and_scheduler`,
`_load_optimizer_and_scheduler` and `_load_rng_state`. It also sets `TrainingArguments._n_gpu`, so that a run stays on
its one device.

Attributes of transformers' models and configurations that have no public reader: `_no_split_modules`
(training/sharding.py), `_tied_weights_keys` and `_keys_to_ignore_on_load_unexpected` (models/weights.py),
`_name_or_path` (models/splitting.py), `_attn_implementation` and `_experts_implementation` (models/remote_code.py).

Attributes by which other libraries wrap a model or layer, read with a default where they may be missing:
`_fsdp_wrapped_module` and `_orig_mod` (patching/find.py), `_is_fsdp_managed_module` (patching/heads.py), Accelerate's
`_hf_hook` (patching/inputs.py) and `_old_forward` (patching/quantized.py), TRL's `_metrics` (patching/evaluation.py),
`_compute_loss` and `_chunked_divergence_loss` (patching/distillation.py) and the variables in the closure of its fused
forward (patching/forward.py), PEFT's `_mixed_batch_forward` and `_apply_road` (patching/adapters.py).

Attributes of a torch module that are replaced for a while: `_call_impl` and `_compiled_call_impl` (models/compiled.py).
`nn.Module.compile` sets the same attribute, but cannot be undone. A stand-in for logits answers `Tensor._base` itself
(patching/pending.py).

Names in a pickle that a checkpoint may hold (training/sharding.py): `_StorageInfo`, `_MEM_FORMAT_ENCODING`,
`_get_layout` and `pathlib._local`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad
from torch.nn import _reduction
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _disable_current_modes, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only

__all__ = ["is_traceable_wrapper_subclass", "tree_map_only"]

# Called for every tensor of every call: other names for torch's own functions, since a wrapper would take time.
Keys = torch._C.DispatchKey
dispatch_keys_of = torch._C._dispatch_keys  # they tell a plain tensor from a subclass or a transformed one
has_storage = torch._C._has_storage
n_dispatch_modes = torch._C._len_torch_dispatch_stack
is_profiling = torch._C._autograd._profiler_enabled
is_jit_tracing = torch._C._is_tracing
current_transform = torch._C._functorch.peek_interpreter_stack
without_modes = _disable_current_modes
without_torch_function = torch._C.DisableTorchFunctionSubclass  # within our own __torch_function__
legacy_reduction = _reduction.legacy_get_string  # size_average and reduce, as F.cross_entropy reads them
make_wrapper_subclass = Tensor._make_wrapper_subclass  # a tensor with a shape and no memory

FAKE_TENSORS = "torch._subclasses.fake_tensor"
FUNCTIONAL_TENSORS = "torch._subclasses.functional_tensor"
COLLECTIVES = "torch.distributed._functional_collectives"


def without_compiler(function: Any, told: str) -> Any:
    """Return a function that torch.compile never traces; errors of full graphs show the reason `told`.

    `torch.compiler.disable` does the same but loads the compiler at once, a second that most users never need.
    """
    disabled: Any = _disable_dynamo(function)
    disabled._torchdynamo_disable, disabled._torchdynamo_disable_msg = True, told
    return disabled


def is_under_transform(x: Tensor) -> bool:
    """Whether torch.func has wrapped a tensor."""
    return bool(_functorch.is_functorch_wrapped_tensor(x) or _functorch.is_legacy_batchedtensor(x))


def is_transforming() -> bool:
    """Whether a transform of torch.func is active, asked in a way that torch.compile can trace."""
    return not isinstance(current_transform(), type(None)) or is_forward_mode()


def is_functionalizing() -> bool:
    """Whether the mode that records a graph for torch.export is on."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FUNCTIONAL) is not None


def is_faking() -> bool:
    """Whether FakeTensorMode is on."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def with_autograd() -> Any:
    """A context that records operations for autograd inside an operator's implementation, where torch excludes it."""
    return torch._C._SetExcludeDispatchKeyGuard(Keys.AutogradFunctionality, False)


def is_forward_mode() -> bool:
    """Whether forward-mode derivatives are on. The level is rebound, so it is read each time."""
    return forward_ad._current_level >= 0


def assert_later(ok: Tensor, message: str) -> None:
    """Fail on the tensor's device, at the next synchronisation, if ok (0-d, bool) is False."""
    torch._assert_async(ok, message)


def storage_id(x: Tensor) -> int:
    """Return what tensors that share memory have in common, even if its address is 0."""
    number: int = x.untyped_storage()._cdata
    return number


def is_zero_tensor(x: Tensor) -> bool:
    """Whether a tensor is one of autograd's zero tensors, which have no memory."""
    return x._is_zerotensor()


def coo_parts(x: Tensor) -> dict[str, Tensor]:
    """Return indices and values of a sparse COO tensor; the public methods refuse one that is not coalesced."""
    return {"indices": x._indices(), "values": x._values()}


def times_changed(x: Tensor) -> int:
    """Return how often a tensor has been changed in place."""
    return x._version


def backward_hooks(x: Tensor) -> dict[int, Any]:
    """Return the hooks that `register_hook` has added to a tensor."""
    return dict(x._backward_hooks or {})


def has_backward_hook(module: nn.Module) -> bool:
    """Whether a module, or all modules, have a hook that receives the gradient of the output."""
    everywhere = nn.modules.module._global_backward_hooks or nn.modules.module._global_backward_pre_hooks
    return bool(everywhere or module._backward_hooks or module._backward_pre_hooks)


def own_weight(module: nn.Module) -> Tensor | None:
    """Return a module's weight if it is a parameter; computing one from a property may change the module."""
    return module._parameters.get("weight")


def parametrized_values() -> dict[Any, Any]:
    """Return what `parametrize.cached` keeps. The dictionary is rebound, so it is read each time."""
    return parametrize._cache


def gather_flat(module: Any) -> None:
    """Gather the flat parameter of a FullyShardedDataParallel; its public way, summon_full_params, is a context."""
    from torch.distributed.fsdp._runtime_utils import _unshard

    if module._handle is not None:
        _unshard(module, module._handle, module._unshard_stream, module._pre_unshard_stream)


def release_flat(module: Any) -> None:
    """Free the gathered flat parameter of a FullyShardedDataParallel again."""
    from torch.distributed.fsdp._runtime_utils import _reshard

    if module._handle is not None and module._handle.uses_sharded_strategy:
        _reshard(module, module._handle, True)


def has_fast_bfloat16() -> bool:
    """Whether a CPU has instructions for bfloat16 matmuls."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `F.linear` with oneDNN where `F.linear` itself would use MKL: see models/cpu.py."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
