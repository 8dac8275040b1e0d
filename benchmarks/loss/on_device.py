"""The loss on a GPU: the same benchmark with heads of real models' shapes, made at random on the GPU itself.

Forward and backward, and the forward alone, are measured in one process. Everything together takes minutes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.loss.benchmark import LossBenchmark, LossWorker
from benchmarks.loss.implementations import Inputs, Outputs
from benchmarks.loss.prepared import SYNTHETIC, Prepared
from benchmarks.texts import cache_folder
from benchmarks.worker import Worker

if TYPE_CHECKING:  # the parent process must not pay for torch
    from benchmarks.device import Device

SHAPES = {"gemma3-270m": (262_144, 640), "llama3-8b": (128_256, 4096), "qwen3-8b": (151_936, 4096)}  # (V, D)
SETTINGS: dict[str, dict[str, Any]] = {
    "cuda": {"heads": tuple(SHAPES), "tokens": (4096, 16_384), "dtypes": ("bfloat16",)},
    "fake": {"heads": ("synthetic:900x24",), "tokens": (64, 300), "dtypes": ("bfloat16",)},
}
HOW = (
    "Seconds: median (least-most) of interleaved runs, a process each. A run is the median of as many steps as fit "
    "into half a second, between events of the device, after steps that are not timed. Memory: the allocator's peak "
    "beyond inputs and gradients, MiB (- accum: beyond what ours adds dW up in). Errors: relative to float64; "
    "gradients in the Frobenius norm, estimated by random projections. A result stands only where no error exceeds "
    "twice that of F.cross_entropy(F.linear(h, W), t) in the same dtype (for the loss, plus one rounding of the dtype)."
)


class DeviceWorker(LossWorker):
    """A loss on a device; it is opened, and libraries are loaded, while others work."""

    benchmark: "DeviceLossBenchmark"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.device = self.benchmark.open()
        self.forward: Callable[[], Outputs] | None = None

    def build(self, n_tokens: int) -> dict[str, Any]:
        self.step = self.forward = None
        self.device.release()
        return super().build(n_tokens)

    def load(self, n_tokens: int) -> Inputs:
        from benchmarks.loss.inputs import make_inputs

        return make_inputs(self.prepared, self.dtype, n_tokens, self.device.place)

    def build_from(self, inputs: Inputs) -> None:
        super().build_from(inputs)
        if inputs.backward:
            self.forward = self.implementation.build(inputs._replace(backward=False))
        self.device.release()  # of what was run to compile it

    def measure(self, compare: bool) -> tuple[Outputs, dict[str, Any]]:
        from benchmarks.device import measured, smi

        state: dict[str, str] = {}
        look = (lambda: state.update(smi())) if compare else (lambda: None)
        outputs, reply = measured(self.device, self.step, self.benchmark.run_seconds, look)
        return outputs, reply | ({"device": state} if state else {})

    def run(self, compare: bool) -> dict[str, Any]:
        from benchmarks.device import measured

        reply = super().run(compare)
        if self.forward is not None:
            _, alone = measured(self.device, self.forward, self.benchmark.run_seconds)
            reply |= {f"forward_{name}": alone[name] for name in ("seconds", "extra_bytes")}
        self.device.release()
        return reply


@dataclass(frozen=True, kw_only=True)
class DeviceLossBenchmark(LossBenchmark):
    """`device` is a name in `benchmarks.device.DEVICES`; heads are names in SHAPES, or `synthetic:VxD`."""

    worker: ClassVar[type[Worker]] = DeviceWorker
    known_heads: ClassVar[tuple[str, ...]] = tuple(SHAPES)
    place: ClassVar[str] = "device"

    device: str
    budget_seconds: float = 400.0
    run_seconds: float = 0.5

    @property
    def how(self) -> str:
        return f"{'Forward and backward; forward: alone.' if self.backward else 'The forward alone.'} {HOW}"

    def check_tokens(self, subject: str) -> int:
        return 0  # the first run is checked, and takes no time worth saving

    def open(self) -> "Device":
        """The device, in the process that calls. Raises ValueError where there is none."""
        from benchmarks.device import DEVICES

        return DEVICES[self.device]()

    def about(self) -> dict[str, Any]:
        return {"device": {"kind": self.device, **self.open().about()}}

    def prepare(self, subject: str, say: Callable[[str], None]) -> Prepared:
        import torch

        from benchmarks.loss.inputs import keep_truth, make_inputs

        place = self.open().place
        synthetic = (
            tuple(int(n) for n in subject.partition(":")[2].split("x")) if SYNTHETIC.fullmatch(subject) else None
        )
        vocab_size, hidden_size = synthetic or SHAPES[subject]
        folder, tokens = cache_folder(f"{self.device}-{vocab_size}x{hidden_size}"), self.tokens_of(subject)
        made = Prepared(subject, "random weights", vocab_size, hidden_size, folder, max(tokens), str(torch.__version__))
        for dtype in self.dtypes:
            for n_tokens in tokens:
                say(f"{subject}: loss and gradients of {n_tokens:,} tokens in float64, for {dtype} inputs")
                keep_truth(made, dtype, make_inputs(made, dtype, n_tokens, place))
        return made
