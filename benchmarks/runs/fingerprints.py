"""What tells runs, weights and data apart: hashes of their contents."""

import hashlib
from pathlib import Path

import torch
from torch import nn


def fingerprint(*parts: str | bytes | Path) -> str:
    """SHA-256 of texts and of files' contents."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def fingerprint_model(module: nn.Module, *settings: str) -> str:
    """SHA-256 of a module's structure, parameters and buffers, and of what else it depends on: the same whatever file
    it came from.
    """
    # some modules, purifiers among them, print their settings alone; what is inside them counts too
    own = [part for part in module.modules() if not type(part).__repr__.__module__.startswith("torch.")]
    inside = [nn.Module.__repr__(part) for part in own]
    digest = hashlib.sha256("\n".join((repr(module), *inside, *settings)).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
