"""Every tensor argument of every public operation, in every layout and subclass: `python -m tests.loss.layouts`.

A served tensor gives the value and gradients of its plain copy, held to float64; any other raises one sentence. It
prints a line per fault, then the number of cases. It is a program, because a fault used to end the process.
"""

import importlib.util
import tempfile
import warnings
from contextlib import nullcontext
from itertools import chain, product
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.masked import masked_tensor

from cynosure.loss import (
    CrossEntropyLoss,
    LinearCrossEntropyLoss,
    cross_entropy,
    linear_cross_entropy,
    linear_kl_div,
    linear_topk_kl_div,
    token_logprobs,
    token_stats,
)
from cynosure.loss.matmul.choice import as_if_large
from tests.loss import divergence_oracle, oracle
from tests.loss.cases import joined
from tests.loss.subclasses import Float8, Followed, LinearAlone, Lying, Named, Opened

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
LEAVES = ("hidden", "weight", "bias", "logits")
STUDENT, TEACHER = (tuple(f"{of}_{name}" for name in LEAVES[:3]) for of in ("student", "teacher"))
N, D, V = 6, 32, 53  # torchao's int8 products want a hidden size of 32
EPS = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-3}
ERRORS = (ValueError, TypeError, NotImplementedError)
RAW = (
    "aten",
    "dispatch",
    "mixed torch.Tensor",
    "data pointer",
    "storage of",
    "internal assert",
    "c10",
    "unimplemented",
)


class Layout(NamedTuple):
    """How a plain tensor is turned into another, and what that one stands for."""

    make: object
    served: object  # True, False, or the arguments for which it is served
    stands_for: object = lambda x: x
    differentiable: bool = True


def overlapping(x):
    return x.as_strided(x.shape, (1,) * x.ndim)


def as_float8(x):
    return x.detach().to(torch.float8_e5m2)


def transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim else x


def misaligned(x):
    memory = bytearray(b"\0" + x.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return torch.frombuffer(memory, dtype=x.dtype, offset=1).view(x.shape)


def inference(x):
    with torch.inference_mode():
        return x.clone()


def freed(x):
    x = x.detach().clone()
    x.untyped_storage().resize_(0)
    return x


def fake(x):
    return FakeTensorMode().from_tensor(x.detach())


def quantized(x):
    return torch.quantize_per_tensor(x.detach().float(), 0.1, 0, torch.qint8)


def padded(x):
    """A slice of a larger tensor, odd strides and offset."""
    return torch.nn.functional.pad(x, (3, 2))[..., 3 : 3 + x.shape[-1]] if x.ndim else x


def sharded(placement):
    return lambda x: DTensor.from_local(x, MESH, [placement if x.ndim else Replicate()])


def torchao_weight(config):
    def make(x):
        import torchao.quantization as ao

        layer = torch.nn.Linear(D, V, bias=False, dtype=x.dtype)
        layer.weight = torch.nn.Parameter(x.detach().clone())
        model = torch.nn.Sequential(layer)
        ao.quantize_(model, getattr(ao, config)())
        return model[0].weight

    return make


WEIGHT, WEIGHTS = ("weight", "student_weight", "teacher_weight"), ("class_weight", "token_weight")
LAYOUTS = {
    "plain": Layout(lambda x: x, True),
    "flipped": Layout(lambda x: x.flip(0).flip(0) if x.ndim else x, True),
    "transposed": Layout(transposed, True),
    "slice": Layout(padded, True),
    "expanded": Layout(lambda x: x[:1].expand(x.shape) if x.ndim else x, True, lambda x: x[:1].expand(x.shape)),
    "overlapping": Layout(overlapping, True, lambda x: overlapping(x.clone())),
    "negated": Layout(lambda x: torch._neg_view(-x), True),
    "named subclass": Layout(lambda x: x.as_subclass(Named), True),
    "followed subclass": Layout(lambda x: x.as_subclass(Followed), True),
    "imaginary part of a conjugate": Layout(lambda x: torch.complex(x, -x).conj().imag, True),
    "parameter": Layout(lambda x: torch.nn.Parameter(x.detach(), requires_grad=False), True, differentiable=False),
    "inference": Layout(inference, True, differentiable=False),
    "misaligned": Layout(misaligned, True, differentiable=False),
    "zero tensor": Layout(lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype), True, torch.zeros_like, False),
    "replicated DTensor": Layout(lambda x: sharded(Replicate())(x), True),
    "sharded DTensor": Layout(lambda x: sharded(Shard(0))(x), True),
    "float8": Layout(Float8, WEIGHT, lambda x: Float8(x).read(), False),
    "float8 with dequantize": Layout(Opened, WEIGHT, lambda x: Opened(x).read(), False),
    "float8 that multiplies alone": Layout(LinearAlone, WEIGHT, lambda x: LinearAlone(x).read(), False),
    "no operation": Layout(Lying, False),
    "float8 dtype": Layout(as_float8, WEIGHTS, lambda x: as_float8(x).to(x.dtype), False),
    "coo": Layout(lambda x: x.detach().to_sparse(), False),
    "mkldnn": Layout(lambda x: x.detach().float().to_mkldnn(), False),
    "quantized": Layout(quantized, False),
    "nested": Layout(lambda x: torch.nested.nested_tensor([x.detach(), x.detach()]), False),
    "jagged": Layout(lambda x: torch.nested.nested_tensor([x.detach(), x.detach()], layout=torch.jagged), False),
    "masked": Layout(lambda x: masked_tensor(x.detach(), x.detach() == x.detach()), False),
    "meta": Layout(lambda x: x.detach().to("meta"), False),
    "fake": Layout(fake, False),
    "freed": Layout(freed, False),
    "uninitialized": Layout(lambda x: torch.nn.UninitializedParameter(), False),
}  # fmt: skip
TORCHAO = ("Float8WeightOnlyConfig", "Int8WeightOnlyConfig", "IntxWeightOnlyConfig")
if importlib.util.find_spec("torchao"):
    for config in TORCHAO:
        make = torchao_weight(config)
        LAYOUTS[config] = Layout(make, WEIGHT, lambda x, make=make: make(x).dequantize(), False)
INTEGERS = ("flipped", "transposed", "slice", "expanded", "overlapping", "named subclass", "inference", "misaligned")
INTEGERS += ("zero tensor", "replicated DTensor", "sharded DTensor", "coo", "meta", "fake", "freed", "jagged")
NUMBERS = ("negated", "named subclass", "inference", "misaligned", "replicated DTensor", "meta", "fake", "freed")


def module(hidden, weight, target, class_weight=None, **options):
    return LinearCrossEntropyLoss(class_weight=class_weight)(hidden, weight, target, **options)


def stats(hidden, weight, target, bias):
    return token_stats(hidden, weight, target, bias=bias).nll.nan_to_num(0.0)


def logits_module(logits, target, class_weight=None, **options):
    return CrossEntropyLoss(class_weight=class_weight)(logits, target, **options)


def forward_alone(**given):
    with torch.no_grad():
        return linear_cross_entropy(**given)


HEAD = ("hidden", "weight", "target", "bias")
STORED = (*STUDENT[:2], "ids", "logprobs", "token_weight")
OPERATIONS = {
    "mean": (linear_cross_entropy, oracle.loss, (*HEAD, *WEIGHTS, "normalizer"), {}),
    "none": (linear_cross_entropy, oracle.loss, (*HEAD, *WEIGHTS), {"reduction": "none", "shift": 1}),
    "forward": (forward_alone, oracle.loss, (*HEAD, *WEIGHTS), {}),
    "module": (module, oracle.loss, (*HEAD, *WEIGHTS), {}),
    "logprobs": (token_logprobs, oracle.logprobs, HEAD, {}),
    "entropy": (joined(token_logprobs), joined(oracle.logprobs_of_hidden), HEAD, {}),
    "stats": (stats, lambda **given: -oracle.logprobs(**given), HEAD, {}),
    "logits": (cross_entropy, oracle.loss_of_logits, ("logits", "target", *WEIGHTS), {}),
    "kl": (linear_kl_div, divergence_oracle.kl_div, (*STUDENT, *TEACHER, "token_weight", "normalizer"), {}),
    "topk kl": (linear_topk_kl_div, divergence_oracle.topk_kl_div, STORED, {}),
    "logits module": (logits_module, oracle.loss_of_logits, ("logits", "target", *WEIGHTS), {}),
}
KINDS = ("indices", "probabilities", "sparse indices", "sparse probabilities")


def batch(names, dtype, kind):
    """A plain tensor for each argument; for a sparse target two."""
    torch.manual_seed(0)
    made = {
        "hidden": torch.randn(N, D).to(dtype),
        "weight": torch.randn(V, D).mul(0.3).to(dtype),
        "bias": torch.randn(V).to(dtype),
        "logits": torch.randn(N, V).to(dtype),
        "class_weight": torch.rand(V) + 0.5,
        "token_weight": torch.rand(N) + 0.5,
        "normalizer": torch.tensor(3.0),
        "target": torch.randint(V, (N,)) if kind == "indices" else torch.randn(N, V).softmax(-1),
        "ids": torch.randint(V, (N, 1)),
        "logprobs": -torch.rand(N, 1),
    }
    for of in ("student", "teacher"):
        made |= {f"{of}_{name}": made[name].flip(0) if of == "teacher" else made[name] for name in LEAVES[:3]}
    parts = {"sparse indices": torch.randint(V, (N, 3)), "sparse probabilities": torch.rand(N, 3) / 3}
    return {name: made[name] for name in names} | (parts if "sparse" in kind else {})


def arguments(tensors):
    """Those that an operation takes: the parts of a sparse target together."""
    given = dict(tensors)
    if "sparse indices" in given:
        given["target"] = (given.pop("sparse indices"), given.pop("sparse probabilities"))
    return given


def evaluate(operation, plain, options, turned=None, turn=None, frozen=None):
    """The result, and the gradient of 1.7 times its sum for each leaf; `turn` makes another tensor of one of them."""
    trained = [name for name in (*LEAVES, *STUDENT, *TEACHER, "logprobs") if name in plain and name != frozen]
    leaves = {name: plain[name].clone().requires_grad_() for name in trained}
    tensors = plain | leaves
    if turn is not None:
        tensors[turned] = turn(tensors[turned])
    result = operation(**arguments(tensors), **options)
    found = {"result": result.detach()}
    if result.requires_grad:
        found |= dict(zip(leaves, torch.autograd.grad(result.sum() * 1.7, list(leaves.values())), strict=True))
    return found


def fault(name, operation_name, argument, dtype, kind):
    """What is wrong with a case, or None."""
    layout, (operation, truth, names, options) = LAYOUTS[name], OPERATIONS[operation_name]
    plain = batch(names, dtype, kind)
    frozen = None if layout.differentiable else argument
    served = argument in layout.served if isinstance(layout.served, tuple) else layout.served
    try:
        ours = evaluate(operation, plain, options, argument, layout.make, frozen)
    except ERRORS as error:
        return f"{type(error).__name__}: {error}" if served else rawness(str(error), argument)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    if not served:
        return "accepted"
    wide = {key: x.double() if x.is_floating_point() else x for key, x in plain.items()}
    if frozen:  # such as quantized numbers, which are those of its own dtype
        plain[argument] = layout.stands_for(plain[argument])
        wide[argument] = plain[argument].to(wide[argument].dtype)
    turn = None if frozen else layout.stands_for
    exact, theirs = (evaluate(truth, x, options, argument, turn, frozen) for x in (wide, plain))
    return next(filter(None, (distance(key, ours, theirs, exact, dtype) for key in ours)), None)


def rawness(text, argument):
    """What keeps a message from being one sentence of ours about the argument."""
    is_raw = any(word in text.lower() for word in RAW) or "\n" in text or not 20 < len(text) < 300
    argument = argument.removeprefix("student_").removeprefix("teacher_")
    named = "fake" if "fake" in text else "target" if argument.startswith("sparse") else argument
    return f"raw: {text[:200]}" if is_raw or named not in text else None


def distance(key, ours, theirs, exact, dtype):
    """A complaint where an error is more than twice torch's."""
    if ours[key].numel() == 0:
        return None if ours[key].shape == exact[key].shape else f"{key} has the shape {tuple(ours[key].shape)}"
    error, same = ((x[key].double() - exact[key]).abs().max().item() for x in (ours, theirs))
    size = exact[key].abs().max().clamp(min=1).item()
    return None if error <= 2 * same + EPS[dtype] * size else f"{key} is off by {error:.1e}, torch's by {same:.1e}"


def cases():
    """Every case: layout, operation, argument, dtype of hidden states or logits, kind of target."""
    for name, operation in product(LAYOUTS, OPERATIONS):
        for argument in OPERATIONS[operation][2]:
            is_target = argument in ("target", "ids")
            if name in TORCHAO and argument.rpartition("_")[2] not in ("hidden", "weight", "logits"):
                continue  # it has none of one dimension
            if (argument == "normalizer" and name not in NUMBERS) or (is_target and name not in INTEGERS):
                continue
            for dtype in DTYPES if argument in LEAVES else DTYPES[:1]:
                if (name in TORCHAO and dtype == torch.float64) or (
                    dtype == torch.bfloat16 and name.startswith(("imag", "mask"))
                ):
                    continue  # there is none
                yield name, operation, argument, dtype, "indices"
    for name, kind in product(INTEGERS, KINDS[1:]):
        yield name, "mean", "target" if kind == "probabilities" else kind, torch.float32, kind


def true_sizes():
    """The same for a few with products of more than 1e9 operations."""
    global N, D, V
    small, (N, D, V) = (N, D, V), (256, 256, 8009)
    kept = [n for n in ("slice", "negated", "float8", "sharded DTensor", *TORCHAO) if n in LAYOUTS]
    yield from product(kept, ("mean",), WEIGHT[:1], DTYPES[:2], ("indices",))
    N, D, V = small


def empty_batches():
    """The same for hidden states, logits and targets of no rows."""
    global N
    small, N = N, 0
    names = ("slice", "negated", "named subclass", "replicated DTensor")
    for name, operation in product(names, OPERATIONS.keys() - {"none"}):  # which shifts by one
        for argument in {"hidden", "logits", "target", "student_hidden", "ids"} & {*OPERATIONS[operation][2]}:
            if argument not in ("target", "ids") or name in INTEGERS:
                yield name, operation, argument, torch.float32, "indices"
    N = small


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty holds NaN
    n = 0
    for large in (False, True):  # torch's products, then the provider's of large ones
        with as_if_large() if large else nullcontext():
            for case in chain(cases(), empty_batches(), () if large else true_sizes()):
                n += 1
                if found := fault(*case):
                    print("FAULT", *case, "large" if large else "small", "|", found, flush=True)
    print(n)


if __name__ == "__main__":
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{file.name}")
        MESH = init_device_mesh("cpu", (1,))
        main()
        dist.destroy_process_group()
