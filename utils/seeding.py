"""Every random draw belongs to somebody: seed -> (purpose, client, round) -> generator."""

import hashlib

import torch


def derive_seed(seed: int, *owner: str | int) -> int:
    """A 63-bit seed that depends on `seed` and on every part of `owner`, and on nothing else."""
    text = "/".join(map(str, (seed, *owner)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *owner: str | int, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh generator on `device` for `owner`, for instance ("client", 3, "round", 17)."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *owner))
