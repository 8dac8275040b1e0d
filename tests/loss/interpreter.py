"""Triton's interpreter: kernels run on a CPU, in NumPy, where TRITON_INTERPRET=1 was set before the import."""

import os
from dataclasses import replace
from functools import cache

import numpy as np
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def configure(config):
    """Let NumPy compute with infinities and NaN as a GPU does, and prepare the interpreter."""
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")
    if INTERPRETED:
        prepare()


def prepare():
    """Let the interpreter round to bfloat16 as GPUs do, where it would truncate, and spare it some of its work.

    At every call inside a kernel it puts its own functions into triton.language: three quarters of its time. At every
    launch it copies all storages to the CPU and back: onto themselves where they are there already.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(x, from_dtype, to_dtype, mode):
        if (from_dtype, to_dtype) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(np.ascontiguousarray(x)).bfloat16().view(torch.int16).numpy().view(np.uint16)
        if (from_dtype, to_dtype) == (tl.bfloat16, tl.float32):
            return x.astype(np.uint32) << 16
        return convert(x, from_dtype, to_dtype, mode)

    interpreter._convert_float = rounded
    of_scalar = cache(interpreter._get_np_dtype)
    interpreter._get_np_dtype = lambda dtype: np.dtype(np.uint64) if dtype.scalar.is_ptr() else of_scalar(dtype.scalar)
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    interpreter._patch_lang(tl.standard.sum.fn)
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)
    interpreter.GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    interpreter.GridExecutor._restore_args_dev = lambda *_: None
