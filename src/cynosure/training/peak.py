"""Measure how fast the machine multiplies matrices, and count the operations of a training."""

import time
from typing import Any

import torch

from cynosure.loss import choose_gemm
from cynosure.loss.linear import matmul

SIZES, RUNS = {"cpu": 1536}, 5  # of square matrices, large enough to keep the whole device busy
SIZE_ELSEWHERE = 8192
FORWARD_BACKWARD = 6  # operations per parameter and token: two forward, four backward
FORWARD_AND_STATES = 4  # without gradients of the weights


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Measure the FLOP/s of large matmuls: the best of a few short runs."""
    size = SIZES.get(device.type, SIZE_ELSEWHERE)
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    flops = 2.0 * size**3
    provider = choose_gemm(flops, dtype, device).provider
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        matmul(a, b, out, provider=provider)
        if device.type != "cpu":
            torch.get_device_module(device).synchronize(device)
        seconds.append(time.perf_counter() - start)
    return flops / min(seconds)


def flops_per_token(model: Any, row_tokens: int) -> float:
    """Return the operations per training token: those of the matrices, the head included, and of causal attention.

    Counted as for PaLM (Chowdhery et al. 2022, appendix B), with attention to half a row on average.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    tied = model.get_input_embeddings().weight is head
    matrices = [p for p in model.parameters() if p.ndim > 1]
    n_weights = sum(p.numel() for p in matrices) - (0 if tied else model.get_input_embeddings().weight.numel())
    trained = all(p.requires_grad for p in matrices)
    attention = config.num_hidden_layers * config.hidden_size * row_tokens
    return float((FORWARD_BACKWARD if trained else FORWARD_AND_STATES) * (n_weights + attention))
