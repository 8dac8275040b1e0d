"""Functions as one graph, and what a graph calls."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Keeps the calls of cynosure's operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cynosure":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def full_graph(function, backend="eager", **how):
    return torch.compile(function, fullgraph=True, backend=backend, **how)
