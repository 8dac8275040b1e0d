"""A patch comes and goes, is copied and sent elsewhere, and is verified by its gradients too."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parameter import UninitializedBuffer

import cynosure
from cynosure.loss import chunked, linear
from cynosure.patching import Patch, patch, unpatch
from cynosure.patching.pending import PendingLogits
from tests.loss.subclasses import Lying, Parted
from tests.patching.test_patch import V, assert_same, batch, family, step
from tests.tiny import ruling_out


@pytest.fixture
def llama() -> Any:
    return family("Llama")


def is_fused(model: Any) -> bool:
    return isinstance(model(**batch()).logits, PendingLogits)


def test_twice_is_once(llama: Any) -> None:
    before = dict(vars(llama))
    with patch(llama) as outer:
        with patch(llama) as inner:
            assert inner is outer
            assert is_fused(llama)
        assert is_fused(llama)
        cynosure.causal_lm_loss(llama, batch()["input_ids"])
        assert is_fused(llama)
    assert vars(llama) == before
    kept = patch(llama)
    with patch(llama):
        pass
    assert is_fused(llama)
    kept.undo()
    assert vars(llama) == before


def test_unpatch(llama: Any) -> None:
    before = dict(vars(llama))
    wrapped = nn.DataParallel(llama)
    unpatch(llama)
    for patched, freed in ((llama, llama), (wrapped, llama), (llama, wrapped)):
        with patch(patched), patch(patched):
            unpatch(freed)
            assert vars(llama) == before
        assert vars(llama) == before
    with pytest.raises(TypeError, match="unpatch needs a causal language model of transformers or a Trainer, got int"):
        unpatch(3)


def test_a_forward_that_was_put_over_it_is_patched_in_turn(llama: Any) -> None:
    """As TRL's trainers put theirs over a model that is patched before."""
    with patch(llama) as first:
        covered = llama.forward
        llama.forward = lambda *args, **kwargs: covered(*args, **kwargs)
        with patch(llama) as second:
            assert second is first
            assert is_fused(llama)
        assert is_fused(llama)
    assert type(llama(**batch()).logits) is Tensor


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied_by", [pickled, saved, copy.deepcopy])
@pytest.mark.parametrize("name", ["Llama, tied", "Gemma 2"])
def test_copies_are_patched_in_themselves(copied_by: Any, name: str) -> None:
    model, inputs = family(name), batch()
    own = step(model, **inputs)
    with patch(model) as patched:
        copied = copied_by(model)
        assert copied._cynosure_patch.model is copied
        fused = patched.fused
        assert is_fused(copied)
        assert_same(own, step(copied, **inputs))
        assert patched.fused == fused
        assert patch(copied) is copied._cynosure_patch
    assert is_fused(copied)
    unpatch(copied)
    assert vars(copied).keys() == vars(family(name)).keys()
    assert_same(own, step(copied, **inputs))


def child(model: Any, queue: Any) -> None:
    queue.put((is_fused(model), model(**batch()).loss.item()))


@pytest.mark.exhaustive
def test_in_another_process(llama: Any) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with patch(llama):
        process = context.Process(target=child, args=(llama, queue))
        process.start()
        fused, loss = queue.get()
        process.join()
    assert fused
    assert loss == pytest.approx(llama(**batch()).loss.item(), rel=1e-5)


def test_weights_are_kept_as_of_the_model_itself(llama: Any, tmp_path: Path) -> None:
    own = llama.state_dict()
    with patch(llama):
        assert llama.state_dict().keys() == own.keys()
        llama.save_pretrained(tmp_path)
    loaded = type(llama).from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in own.items())


# Verification


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("faulty", ["hidden", "weight"])
@pytest.mark.parametrize("n_possible", [V, V - 9])
def test_wrong_gradients_are_refused(
    llama: Any, n_possible: int, faulty: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is right, but a matmul leaves its `out` unchanged, as with some tensor subclasses."""
    ruling_out(llama, n_possible).to(dtype)
    n_classes, hidden_size = llama.lm_head.weight.shape
    real, real_sum = chunked.matmul, chunked.WeightSum.add

    def matmul(a: Tensor, b: Tensor, out: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ignored = out.shape == (n_classes, hidden_size) if faulty == "weight" else out.shape[1] == hidden_size
        return out.zero_() if ignored else real(a, b, out, *args, **kwargs)

    def add(self: Any, *args: Any, **kwargs: Any) -> None:
        real_sum(self, *args, **kwargs)
        if faulty == "weight":
            self.dweight.zero_()

    monkeypatch.setattr(chunked, "matmul", matmul)
    monkeypatch.setattr(linear, "matmul", matmul)
    monkeypatch.setattr(chunked.WeightSum, "add", add)
    with pytest.raises(ValueError, match=f"cannot be patched: the gradient of its head's {faulty} is off by"):
        patch(llama)
    assert type(llama(**batch()).logits) is Tensor
    if faulty == "weight":  # which no one asks for now
        with patch(llama.requires_grad_(False)):
            assert is_fused(llama)
        with pytest.raises(ValueError, match="weight is off by"):
            patch(llama.requires_grad_(True))


def test_verified_by_the_products_of_large_batches(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, choose = [], linear.choose_gemm

    def choose_gemm(flops: float, *args: Any) -> Any:
        found = choose(flops, *args)
        asked.append(found.reason)
        return found

    monkeypatch.setattr(linear, "choose_gemm", choose_gemm)
    with patch(llama):
        assert any(reason != "the matmuls are small" for reason in asked)
        asked.clear()
        step(llama, **batch())
        assert set(asked) == {"the matmuls are small"}


class Counting(nn.Module):
    """A layer with statistics that it keeps in evaluation too, and with noise."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + 0.1 * torch.randn_like(x)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_verifying_leaves_no_trace(llama: Any, mode: Any) -> None:
    llama.model.norm = nn.Sequential(llama.model.norm, Counting())
    llama.train()
    llama.model.layers[0].eval()
    llama.activation_checkpointing_enable()
    llama.lm_head.weight.grad = torch.ones_like(llama.lm_head.weight)
    modes = [module.training for module in llama.modules()]
    torch.manual_seed(0)
    drawn = torch.randn(2)
    torch.manual_seed(0)
    with mode(), patch(llama):
        assert torch.equal(torch.randn(2), drawn)
        assert [module.training for module in llama.modules()] == modes
        assert not llama.model.norm[1].calls.any()
        grads = {name: p.grad for name, p in llama.named_parameters() if p.grad is not None}
        assert grads.keys() == {"lm_head.weight"}
        assert bool((grads["lm_head.weight"] == 1).all())
    unpatch(llama)
    assert isinstance(patch(llama), Patch)


BUFFERS: dict[str, Callable[[], Tensor | None]] = {
    "parted": lambda: Parted.of(torch.ones(3)),
    "without operations": lambda: Lying(torch.ones(3)),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "meta": lambda: torch.empty(3, device="meta"),
    "fake": lambda: FakeTensorMode().from_tensor(torch.ones(3)),
    "expanded NaN": lambda: torch.tensor(torch.nan).expand(3),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "float8": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "empty": lambda: torch.empty(0),
    "uninitialized": UninitializedBuffer,
    "None": lambda: None,
}


@pytest.mark.filterwarnings(
    "ignore:Sparse", "ignore:The PyTorch API of nested tensors", "ignore:torch.quantize_per_tensor"
)
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_every_kind(llama: Any, kind: str, inference: bool) -> None:
    with torch.inference_mode(inference):
        buffer = BUFFERS[kind]()
    for layer in (llama, llama.model):  # two have the same
        layer.register_buffer("more", buffer)
    with patch(llama):
        assert is_fused(llama)
        assert llama.more is llama.model.more is buffer


@pytest.mark.parametrize(
    ("buffer", "part"),
    [
        (Parted.of(torch.ones(3)), lambda x: x.stored),
        (torch.eye(3).to_sparse().coalesce(), lambda x: x.values()),
        (torch.full((3,), torch.nan), lambda x: x),
        (torch.ones(3, 2).t(), lambda x: x),
        (torch.ones(3, dtype=torch.complex64), lambda x: x),
    ],
)
def test_parts_of_buffers_are_put_back(llama: Any, buffer: Tensor, part: Any) -> None:
    llama.register_buffer("more", buffer)

    def change(*_: Any) -> None:
        part(buffer).fill_(7)

    llama.register_forward_pre_hook(change)
    before = part(buffer).clone()
    with patch(llama):
        torch.testing.assert_close(part(buffer), before, rtol=0, atol=0, equal_nan=True)


def test_a_model_that_is_nan_or_overflows(llama: Any) -> None:
    with torch.no_grad():
        llama.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="its own loss is nan on a few tokens: check its weights"):
        patch(llama)


def test_models_that_need_a_cache_and_that_cannot_have_one() -> None:
    for wanted in (True, False):

        class Choosy(type(family("Llama"))):  # type: ignore[misc]
            def forward(self, *args: Any, use_cache: bool | None = None, wanted: bool = wanted, **kwargs: Any) -> Any:
                if (use_cache is None) != wanted:
                    raise RuntimeError("the cache")
                return super().forward(*args, use_cache=use_cache, **kwargs)

        model = family("Llama")
        model.__class__ = Choosy
        with patch(model) as patched:
            assert patched.fused == 1


def test_offloaded_weights(llama: Any, tmp_path: Path) -> None:
    from accelerate import cpu_offload, disk_offload, dispatch_model

    own = step(llama, **batch())[0]
    names = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu",
             "lm_head": "disk"}  # fmt: skip
    offloads: list[Any] = [
        lambda model: cpu_offload(model, execution_device="cpu"),
        lambda model: disk_offload(model, str(tmp_path / "all"), execution_device="cpu"),
        lambda model: dispatch_model(model, names, main_device="cpu", offload_dir=str(tmp_path / "some")),
    ]
    for offload in offloads:
        model = family("Llama")
        offload(model)
        assert any(parameter.device.type == "meta" for parameter in model.parameters())
        with patch(model) as patched:
            torch.testing.assert_close(model(**batch()).loss.detach(), own)
            assert patched.made_by == []
        found = cynosure.audit(model, [batch()])
        assert not [finding.name for finding in found.findings if finding.name == "fused-loss"]
