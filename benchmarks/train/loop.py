"""Training as nanoGPT does it: a short loop of one's own, with torch's loss of full logits."""

from contextlib import nullcontext

import torch
from torch.nn import functional as F

from benchmarks.train.implementations import TrainWork
from benchmarks.train.stepping import LEARNING_RATE

CLIP = 1.0  # Trainer's default


class Loop:
    """Each call is one step: batch, model, clipping, optimizer; the optimizer as Trainer has it by default."""

    def __init__(self, work: TrainWork) -> None:
        self.model = work.model.model.train()
        self.batches = iter(torch.split(torch.tensor(work.texts), work.n_rows))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self.autocast = work.autocast

    def __call__(self) -> float:
        ids = next(self.batches)
        with torch.autocast("cpu", dtype=torch.bfloat16) if self.autocast else nullcontext():
            logits = self.model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()
