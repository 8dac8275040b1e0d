"""Ten thousand calls of the loss in one process: `python -m tests.loss.many_calls` prints what has grown."""

import gc
import json
import threading
from pathlib import Path

import torch

from cynosure.loss import cross_entropy, linear_cross_entropy, token_stats

N_CALLS, N_WARM = 10_000, 2000


def calls(n, hidden, weight, target):
    for i in range(n):
        linear_cross_entropy(hidden, weight, target, chunk_tokens=2).backward()
        if i % 5 == 0:
            cross_entropy(hidden, target).backward()
            token_stats(hidden.detach(), weight.detach(), target, topk=2, temperatures=[0.5, 2.0])
        hidden.grad = weight.grad = None


def state():
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "resident_bytes": int(status["VmRSS"].split()[0]) * 1024,
        "objects": len(gc.get_objects()),
        "threads": int(status["Threads"]),
        "python_threads": threading.active_count(),
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }


def main():
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 7).requires_grad_() for n in (5, 7))
    target = torch.tensor([0, 3, -100, 6, 1])
    calls(N_WARM, hidden, weight, target)
    before = state()
    calls(N_CALLS, hidden, weight, target)
    print(json.dumps({name: n - before[name] for name, n in state().items()}))


if __name__ == "__main__":
    main()
