"""Triton's interpreter: kernels run on a CPU, in NumPy, where TRITON_INTERPRET=1 was set before the import."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def configure(config):
    """Let NumPy compute with infinities and NaN as a GPU does, and prepare the interpreter."""
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning:triton.runtime.interpreter")
    if INTERPRETED:
        prepare()


def prepare():
    """Spare the interpreter what it does again and again.

    At every call inside a kernel it puts its own functions into triton.language: three quarters of its time. At every
    launch it copies all storages to the CPU and back: onto themselves where they are there already.
    """
    from triton.language import standard
    from triton.runtime import interpreter

    interpreter._patch_lang(standard.sum.fn)
    interpreter.InterpretedFunction.__call__ = lambda self, *args, **kwargs: self.rewrite()(*args, **kwargs)
    interpreter.GridExecutor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    interpreter.GridExecutor._restore_args_dev = lambda *_: None
