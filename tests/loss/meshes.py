"""One of two processes: DTensors through the fused loss. Started by `tests/loss/test_layouts.py`; prints "right"."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from cynosure.loss import cross_entropy, linear_cross_entropy, token_stats

N, D, V = 6, 16, 51  # shards of V differ in size


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2,))
    plain = {"hidden": torch.randn(N, D), "weight": torch.randn(V, D), "bias": torch.randn(V)}
    target, token_weight = torch.randint(V, (N,)), torch.rand(N)
    leaves = {name: x.clone().requires_grad_() for name, x in plain.items()}
    loss = linear_cross_entropy(**leaves, target=target, token_weight=token_weight)
    loss.backward()
    for placement in (Replicate(), Shard(0), Shard(1)):

        def spread(x, placement=placement):
            at = placement if x.ndim == 2 else Replicate() if placement == Shard(1) else placement
            return distribute_tensor(x.detach(), mesh, [at]).requires_grad_(x.is_floating_point())

        spread_out = {name: spread(x) for name, x in plain.items()}
        weights = spread(token_weight).detach()
        ours = linear_cross_entropy(**spread_out, target=spread(target), token_weight=weights)
        ours.backward()
        assert torch.equal(ours, loss)
        for name, x in spread_out.items():
            assert x.grad.placements == x.placements
            assert torch.equal(x.grad.full_tensor(), leaves[name].grad), name
        with torch.no_grad():
            logits = spread(plain["hidden"] @ plain["weight"].T)
            assert torch.equal(cross_entropy(logits, target), cross_entropy(logits.full_tensor(), target))
            nll = token_stats(plain["hidden"], spread_out["weight"], target).nll
            assert torch.equal(nll, token_stats(plain["hidden"], plain["weight"], target).nll)
        with pytest.raises(NotImplementedError, match="weight is a DTensor over 2 processes that requires grad"):
            linear_cross_entropy(plain["hidden"], spread_out["weight"], target)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    print("right", flush=True)
    dist.destroy_process_group()
