"""What an operation did, seen from underneath: its matrix products, its allocations, its rounding errors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Where each kind of product finds its two operands. One that is not listed is a failure, not a free product.
OPERANDS = {"mm": (0, 1), "bmm": (0, 1), "matmul": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "addbmm": (1, 2)}
UNCOUNTED = {"mv", "addmv", "dot", "vdot", "einsum", "tensordot", "_int_mm", "_scaled_mm", "addr", "ger"}


class Gemms(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, and the dtypes they ran in."""

    def __init__(self):
        super().__init__()
        self.flops = 0
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1].rstrip("_")
        if name in UNCOUNTED:
            raise AssertionError(f"a matrix product this probe does not count: {func}")
        if name == "linear":
            self.add(args[0], args[1].mT)
        elif name in OPERANDS:
            left, right = OPERANDS[name]
            self.add(args[left], args[right])
        return func(*args, **(kwargs or {}))

    def add(self, a, b):
        self.flops += 2 * a.numel() * b.shape[-1]
        self.dtypes.add(a.dtype)

    def count(self, rows, d, v):
        """How many products of `rows` hidden states with the whole vocabulary that makes."""
        return self.flops / (2 * rows * d * v)


class Allocations(TorchDispatchMode):
    """The largest storage made inside it, in elements, and how many there are of at least `large` of them."""

    def __init__(self, *inputs, large=float("inf")):
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in tree_leaves(inputs) if torch.is_tensor(x)}
        self.large = large
        self.kept = {}  # large storages are kept alive, so that none is counted twice nor two as one
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if torch.is_tensor(x) and x.untyped_storage().data_ptr() not in self.known:
                storage = x.untyped_storage()
                size = storage.nbytes() // x.itemsize
                self.largest = max(self.largest, size)
                if size >= self.large:
                    self.kept[storage.data_ptr()] = storage
        return result


def max_error(x, truth):
    return (x.double() - truth).abs().max().item() if truth.numel() else 0.0


def rms_error(x, truth):
    return (x.double() - truth).square().mean().sqrt().item() if truth.numel() else 0.0


def assert_three_way(ours, torch_same_dtype, truth, *, eps, name="", error=max_error):
    """err(ours) <= 2 err(torch in the same dtype) + eps, against float64. NaN fails."""
    mine, theirs = error(ours, truth), error(torch_same_dtype, truth)
    assert mine <= 2 * theirs + eps, f"{name}: error {mine:.3e}, torch's {theirs:.3e}, eps {eps:.1e}"
