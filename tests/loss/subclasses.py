"""Tensor subclasses that keep their values in ways of their own."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Named(Tensor):
    """A subclass with a name and plain memory."""


class Float8(Tensor):
    """Float8 numbers and a scale, in a tensor without memory; every operation works on what they stand for."""

    @staticmethod
    def __new__(cls, x):
        return Tensor._make_wrapper_subclass(cls, x.shape, dtype=x.dtype, device=x.device)

    def __init__(self, x):
        self.scale = x.detach().abs().amax() / 400
        self.stored = (x.detach() / self.scale).to(torch.float8_e4m3fn)

    def read(self):
        return self.stored.to(self.dtype) * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def read(x):
            return x.read() if isinstance(x, Float8) else x

        return func(*tree_map(read, args), **tree_map(read, kwargs or {}))  # an `out` of this class is not written


class Parted(Tensor):
    """A subclass without memory that says which tensors hold its values, and stays of its class when detached."""

    @staticmethod
    def __new__(cls, stored, scale):
        return Tensor._make_wrapper_subclass(cls, stored.shape, dtype=scale.dtype, device=scale.device)

    def __init__(self, stored, scale):
        self.stored, self.scale = stored, scale

    @classmethod
    def of(cls, x):
        scale = x.detach().abs().amax() / 100
        return cls((x.detach() / scale).to(torch.int8), scale)

    def dequantize(self):
        return self.stored * self.scale

    def __tensor_flatten__(self):
        return ["stored", "scale"], None

    @staticmethod
    def __tensor_unflatten__(parts, context, size, stride):
        return Parted(parts["stored"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return cls(args[0].stored, args[0].scale)

        def read(x):
            return x.dequantize() if isinstance(x, Parted) else x

        return func(*tree_map(read, args), **tree_map(read, kwargs or {}))


class Followed(Tensor):
    """A subclass by __torch_function__ alone, whose operations give their own class again."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


class Opened(Float8):
    """The same, which says how it is made plain."""

    def dequantize(self):
        return self.read()


class LinearAlone(Float8):
    """The same, which can be multiplied by and detached, and nothing else."""

    KNOWN = (
        "mm",
        "addmm",
        "clone",
        "copy_",
        "t",
        "detach",
        "alias",
        "_to_copy",
        "matmul",
        "linear",
        "view",
        "_unsafe_view",
    )

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        if name not in cls.KNOWN:
            raise NotImplementedError(f"unimplemented {func}")
        return super().__torch_dispatch__(func, types, args, kwargs)


class Lying(Float8):
    """A subclass without any operation."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"unimplemented {func}")
