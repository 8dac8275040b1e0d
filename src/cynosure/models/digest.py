"""Compute digests that tell two sets of weights apart."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cynosure.loss import parts_of


def add_tensors(digest: Any, tensors: Mapping[str, Tensor], mark: str = "") -> None:
    """Add tensors to a hashlib digest: names with the prefix `mark`, dtypes, shapes and bytes (of their parts)."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{mark}{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if parts := parts_of(tensor):
            add_tensors(digest, parts, f"{mark}{name}.")
        else:
            tensor = tensor.dequantize() if tensor.is_quantized else tensor.detach()
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, their names, dtypes and shapes."""
    digest = hashlib.sha256()
    add_tensors(digest, model.state_dict())
    return digest.hexdigest()
