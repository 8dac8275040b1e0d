"""The loss of DTensors over two processes: `python -m tests.loss.two_processes sharded`; prints a line for each."""

import sys
import tempfile

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from cynosure.loss import linear_cross_entropy, linear_kl_div, linear_topk_kl_div
from cynosure.loss.sampling.options import draw_seed
from tests.loss import divergence_oracle, oracle


def tensors():
    torch.manual_seed(0)
    return torch.randn(6, 16), torch.randn(52, 16), torch.randint(52, (6,))


def check_divergences(mesh, split):
    """Of two models, and of a stored teacher: the value, the gradients and their placements."""
    torch.manual_seed(1)
    models = [torch.randn(*shape) for shape in ((6, 16), (52, 16), (6, 8), (52, 8))]
    stored = [*models[:2], torch.randint(52, (6, 1)), -torch.rand(6, 1)]
    for operation, truth, tensors in (
        (linear_kl_div, divergence_oracle.kl_div, models),
        (linear_topk_kl_div, divergence_oracle.topk_kl_div, stored),
    ):
        exact = [x.double().requires_grad_() if x.is_floating_point() else x for x in tensors]
        spread = [distribute_tensor(x, mesh, split).requires_grad_(x.is_floating_point()) for x in tensors]
        loss, expected = operation(*spread), truth(*exact)
        trained = [i for i, x in enumerate(tensors) if x.is_floating_point()]
        grads, expected_grads = (
            torch.autograd.grad(result, [leaves[i] for i in trained])
            for result, leaves in ((loss, spread), (expected, exact))
        )
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
        for i, x, y in zip(trained, grads, expected_grads, strict=True):
            assert x.placements == spread[i].placements
            torch.testing.assert_close(x.full_tensor().double(), y, rtol=1e-5, atol=1e-6)
        with pytest.raises(NotImplementedError, match=r"student_weight is .* 2 processes .* student_hidden is a plain"):
            operation(tensors[0], *spread[1:])
    with pytest.raises(NotImplementedError, match=r"teacher_weight is .* 2 processes .* teacher_hidden is a plain"):
        linear_kl_div(models[0], models[1], models[2], distribute_tensor(models[3], mesh, split).requires_grad_())


def work(rank, placement, path, lines):
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{path}")
    mesh = init_device_mesh("cpu", (2,))
    split = [Shard(0) if placement == "sharded" else Replicate()]
    hidden, weight, target = tensors()
    truth = [x.double().requires_grad_() for x in (hidden, weight)]
    expected = oracle.loss(*truth, target)
    expected_grads = torch.autograd.grad(expected, truth)
    leaves = [distribute_tensor(x, mesh, split).requires_grad_() for x in (hidden, weight)]
    loss = linear_cross_entropy(*leaves, distribute_tensor(target, mesh, split))
    grads = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    for x, y, leaf in zip(grads, expected_grads, leaves, strict=True):
        assert x.placements == leaf.placements
        torch.testing.assert_close(x.full_tensor().double(), y, rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match="weight is a DTensor over 2 processes that requires grad"):
        linear_cross_entropy(hidden, leaves[1], target)  # hidden states of its own on each
    with pytest.raises(NotImplementedError, match="needs the same draws in all of them"):
        linear_cross_entropy(*leaves, distribute_tensor(target, mesh, split), grad_tolerance=0.5)
    draws = {"grad_tolerance": 0.5, "generator": torch.Generator().manual_seed(1)}
    sampled = linear_cross_entropy(*leaves, distribute_tensor(target, mesh, split), **draws)
    torch.testing.assert_close(sampled.double(), expected, rtol=1e-6, atol=1e-6)
    seeds: list = [None, None]
    torch.manual_seed(0)  # as a launcher does in every process
    dist.all_gather_object(seeds, int(draw_seed()))
    assert seeds[0] != seeds[1], "processes draw alike"
    check_divergences(mesh, split)
    frozen = linear_cross_entropy(hidden, leaves[1].detach(), target)
    torch.testing.assert_close(frozen.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    lines.put(f"{rank} same")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        lines = mp.get_context("spawn").SimpleQueue()
        mp.spawn(work, (sys.argv[1], f"{folder}/store", lines), nprocs=2)
        print(*sorted(lines.get() for _ in range(2)), sep="\n")
