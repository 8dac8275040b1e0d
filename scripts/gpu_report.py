"""Compile the Triton kernels that a model would meet, and write docs/reference/gpu-kernels.md. No GPU is needed.

The kernels are launched through the backend, but each launch is only recorded: what is compiled is what a GPU's
just-in-time compiler would be asked for. NVIDIA's numbers are read from machine code, AMD's from assembly.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from cynosure.loss.backends.triton_rows import TritonRows
from cynosure.loss.options import RowOptions, accumulation_dtype
from cynosure.loss.pieces import Best, Piece
from cynosure.loss.sizes import ON_DEVICE, Sizes
from cynosure.loss.targets import TargetRows

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "gpu-kernels.md"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
LLAMA_3, GPT_2 = 128_256, 50_257  # vocabularies
OPTIONS: dict[str, Any] = {"label_smoothing": 0.1, "z_loss": 1e-4, "softcap": 30.0, "scale": 0.5}


class Variant(NamedTuple):
    """Logits and what is asked of them."""

    dtype: torch.dtype = torch.bfloat16
    vocab_size: int = LLAMA_3
    row_unit: int = 1  # a row begins at a multiple of this many logits
    kind: str = "indices"
    options: Mapping[str, Any] = MappingProxyType({})
    class_weight: bool = False
    asked: str = "gradient"


VARIANTS = {
    "loss and gradient": Variant(),
    "loss and gradient, float16": Variant(torch.float16),
    "loss and gradient, float32": Variant(torch.float32),
    "loss and gradient, float64": Variant(torch.float64),
    "loss and gradient, softcap": Variant(options={"softcap": 30.0}),
    "loss and gradient, smoothing": Variant(options={"label_smoothing": 0.1}),
    "loss and gradient, all options": Variant(options=OPTIONS, class_weight=True),
    "loss and gradient, 64 classes a row": Variant(kind="sparse"),
    "loss and gradient, dense targets": Variant(kind="dense"),
    "loss and gradient, GPT-2": Variant(vocab_size=GPT_2, row_unit=ON_DEVICE.row_unit),
    "loss and gradient, GPT-2, logits given": Variant(vocab_size=GPT_2),
    "loss": Variant(asked="loss"),
    "loss, softcap": Variant(asked="loss", options={"softcap": 30.0}),
    "statistics": Variant(asked="statistics"),
    "statistics, softcap": Variant(asked="statistics", options={"softcap": 30.0}),
    "temperatures": Variant(asked="temperatures"),
}


class Launch(NamedTuple):
    """A kernel and what it was launched with."""

    kernel: Any
    args: tuple[Any, ...]
    keywords: dict[str, Any]

    @property
    def logits(self) -> Tensor:
        logits: Tensor = self.args[0]
        return logits

    def compiled(self, target: GPUTarget) -> Any:
        """What the just-in-time compiler would make of it on this GPU."""
        backend = make_backend(target)
        bind = create_function_from_signature(self.kernel.signature, self.kernel.params, backend)
        keywords = {**self.keywords, "debug": False}
        bound, specialization, options = bind(*self.args, **keywords)
        options, signature, constants, attributes = self.kernel._pack_args(
            backend, keywords, bound, specialization, options
        )
        source = ASTSource(self.kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=options.__dict__)


def launched(variant: Variant) -> Launch:
    """The kernel launched for this variant."""
    launches: list[Launch] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        launches.append(Launch(kernel, args, keywords))

    with patch.object(JITFunction, "run", note):
        ask(variant)
    return launches[-1]


def ask(variant: Variant) -> None:
    """Call the backend with two rows."""
    backend, n = TritonRows(), variant.vocab_size
    sizes, acc = Sizes(row_unit=variant.row_unit, spread_bytes=None), accumulation_dtype(variant.dtype)
    z = torch.empty(2, sizes.row_stride(n, variant.dtype), dtype=variant.dtype)[:, :n]
    weight = torch.ones(n, dtype=acc) if variant.class_weight else None
    options, piece, k = RowOptions(**variant.options, class_weight=weight), Piece(0, n), torch.ones(2, dtype=acc)
    index = torch.zeros(2, dtype=torch.int64)
    if variant.asked in ("statistics", "temperatures"):
        beta = (0.5,) if variant.asked == "temperatures" else ()
        backend.stats_piece(z, piece, index, z[:, 0], options, Best.none(2, 5, z.device), beta)
        return
    n_classes = {"indices": 1, "sparse": 64, "dense": n}[variant.kind]
    classes = None if variant.kind == "dense" else index[:, None].expand(2, n_classes)
    target = TargetRows(classes, torch.ones(2, n_classes, dtype=acc), k)
    if variant.asked == "loss":
        backend.loss_piece(z, piece, target, options)
    else:
        backend.loss_rows(z, target, options, k)


class Loop(NamedTuple):
    """The instructions of a loop, from its first line to its last."""

    start: int
    stop: int
    lines: list[str]

    def count(self, pattern: str) -> int:
        """How many instructions there are of a kind."""
        return sum(re.search(pattern, line) is not None for line in self.lines)

    def bits(self, pattern: str, width: Callable[[str], int]) -> list[int]:
        """How wide its accesses to memory of a kind are."""
        return [width(line) for line in self.lines if re.search(pattern, line)]


class Machine(NamedTuple):
    """How the assembly of a maker reads."""

    label: str
    jump: str
    instruction: str
    load: str
    store: str
    exponential: str
    barrier: str
    width: Callable[[str], int]


def nvidia_width(line: str) -> int:
    """Bits of an access such as LDG.E.128.CONSTANT, LDG.E.U16 or LDG.E."""
    match = re.search(r"(?:LDG|STG)\.E\S*?\.(?:U|S)?(8|16|64|128)\b", line)
    return int(match[1]) if match else 32


def amd_width(line: str) -> int:
    """Bits of an access such as global_load_dwordx4, global_load_ushort or global_load_dword."""
    match = re.search(r"dwordx(\d)", line)
    return 32 * int(match[1]) if match else 32 if "dword" in line else 8 if "byte" in line else 16


NVIDIA = Machine(
    r"^\.(L_x_\d+):", r"BRA.*`\(\.(L_x_\d+)\)", r"^\s+/\*[0-9a-f]+\*/", r"\bLDG\.", r"\bSTG\.", r"\bMUFU\.EX2\b",
    r"\bBAR\.SYNC", nvidia_width,
)  # fmt: skip
AMD = Machine(
    r"^\.(LBB\w+):", r"s_c?branch\w*\s+\.(LBB\w+)", r"^\s+[a-z]\w+", r"\b(?:global|buffer)_load_",
    r"\b(?:global|buffer)_store_", r"\bv_exp_f32", r"\bs_barrier\b", amd_width,
)  # fmt: skip


class Report(NamedTuple):
    """What a kernel takes of a GPU; figures a logit are of the passes over the row."""

    registers: int
    spills: int
    stack: int
    shared: int
    load_bits: int
    store_bits: int  # 0 where nothing is stored in a pass
    bytes: float
    instructions: float
    exponentials: float


@cache
def report(name: str, target: str) -> Report:
    """The figures of a variant for a target."""
    launch, gpu = launched(VARIANTS[name]), TARGETS[target]
    kernel = launch.compiled(gpu)
    machine, text = assembly(kernel)
    how = launch.keywords
    n_logits = how["LANES"] * how["UNROLL"] / (how["num_warps"] * gpu.warp_size)  # of a thread, in a tile
    passes = [loop for loop in loops(text, machine) if is_pass(loop, machine, n_logits)]
    loads = [loop.bits(machine.load, machine.width) for loop in passes]
    stores = [bits for loop in passes for bits in loop.bits(machine.store, machine.width)]
    resources = nvidia_resources(kernel, text) if machine is NVIDIA else amd_resources(text)
    return Report(
        *resources,
        load_bits=min(min(bits) for bits in loads),
        store_bits=min(stores, default=0),
        bytes=(sum(map(sum, loads)) + sum(stores)) / 8 / n_logits,
        instructions=sum(loop.count(machine.instruction) for loop in passes) / n_logits,
        exponentials=sum(loop.count(machine.exponential) for loop in passes) / n_logits,
    )


def is_pass(loop: Loop, machine: Machine, n_logits: float) -> bool:
    """Whether a loop reads a tile of logits, and is none over the classes of a target, whose indices have 64 bits."""
    bits = loop.bits(machine.load, machine.width)
    return sum(bits) >= 16 * n_logits and 64 not in bits


def loops(text: str, machine: Machine) -> list[Loop]:
    """The loops that are neither inside another nor have another inside: the passes over a row."""
    lines, labels, found = text.splitlines(), {}, []
    for place, line in enumerate(lines):
        if label := re.match(machine.label, line):
            labels[label[1]] = place
        jump = re.search(machine.jump, line)
        if jump and jump[1] in labels:
            start = labels[jump[1]]
            body = [line for line in lines[start : place + 1] if re.search(machine.instruction, line)]
            found.append(Loop(start, place, body))
    real = [loop for loop in found if loop.count(machine.load) or loop.count(machine.store)]
    return [
        loop for loop in real
        if not any(other is not loop and other.start <= loop.stop and loop.start <= other.stop for other in real)
    ]  # fmt: skip


def assembly(kernel: Any) -> tuple[Machine, str]:
    """What a GPU runs, as text, and how to read it."""
    if "cubin" in kernel.asm:
        return NVIDIA, nvidia_tool(kernel, "nvdisasm", "-c")
    return AMD, kernel.asm["amdgcn"]


def nvidia_tool(kernel: Any, tool: str, *flags: str) -> str:
    """What one of the tools that come with triton says of a kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
        return subprocess.run([program, *flags, file.name], capture_output=True, text=True, check=True).stdout


def nvidia_resources(kernel: Any, text: str) -> tuple[int, int, int, int]:
    """Registers, accesses to spilt ones, bytes of stack and of shared memory."""
    usage = nvidia_tool(kernel, "cuobjdump", "--dump-resource-usage")
    registers, stack, shared = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "SHARED"))  # type: ignore[index]
    return registers, len(re.findall(r"\b(?:LDL|STL)\b", text)), stack, shared


def amd_resources(text: str) -> tuple[int, int, int, int]:
    """Vector registers, spilt ones, bytes of stack and of shared memory."""
    names = (
        "vgpr_count",
        "vgpr_spill_count",
        "sgpr_spill_count",
        "private_segment_fixed_size",
        "group_segment_fixed_size",
    )
    count = {name: int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) for name in names}  # type: ignore[index]
    return (
        count["vgpr_count"],
        count["vgpr_spill_count"] + count["sgpr_spill_count"],
        count["private_segment_fixed_size"],
        count["group_segment_fixed_size"],
    )


TEXT = """# GPU kernels

The Triton kernels of the loss, compiled for four GPUs: NVIDIA's A100 (sm_80), H100 (sm_90) and B200 (sm_100), and AMD's
MI300 (gfx942). `make gpu-report` writes this page without a GPU, here with triton {triton}. **No GPU has run these
kernels, and nothing here is a time.**

| column | meaning |
|---|---|
| registers | registers of a thread |
| spills | accesses to registers spilled to memory (NVIDIA), or registers spilled (AMD) |
| stack, shared | bytes of stack of a thread, bytes of shared memory of a row |
| load, store | bits of the narrowest access to logits; 128 is the widest possible |
| bytes | bytes read and written per logit |
| instructions, exp | instructions and exponentials per logit; exponentials in float64 are many instructions |

The last three count every pass over a row. The loss with its gradient takes two passes: it reads the logits twice and
writes their gradient over them once. The loss alone and the statistics take one. Each temperature takes one more, whose
reads can come from the cache.

Rows have {llama:,} logits (Llama 3), or {gpt:,} (GPT-2). The loss pads its own rows, so that each starts at a
multiple of 16 bytes; logits that are given lie as they are.

"""


def page() -> str:
    """All reports, as Markdown."""
    rows = [
        "| kernel | GPU | registers | spills | stack | shared | load | store | bytes | instructions | exp |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, target in product(VARIANTS, TARGETS):
        r = report(name, target)
        store = r.store_bits or "none"
        rows.append(
            f"| {name} | {target} | {r.registers} | {r.spills} | {r.stack} | {r.shared} | {r.load_bits} | {store} | "
            f"{r.bytes:.1f} | {r.instructions:.1f} | {r.exponentials:.2f} |"
        )
    return TEXT.format(triton=triton.__version__, llama=LLAMA_3, gpt=GPT_2) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
