"""A shuffled order that is computed and not stored: what stands at any position, by arithmetic.

A position becomes two numbers, left and right, and each round adds a hash of the one to the other
(a Feistel network; Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). Each
round can be undone, so no two positions become one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

ROUNDS = 6  # four make a random order of random functions; two more, as the hash is a simple one


def permute(positions: Tensor, length: int, seed: int) -> Tensor:
    """Return what stands at these positions, int64, in a shuffled order of range(length)."""
    num_left = math.isqrt(length - 1) + 1
    num_right = -(-length // num_left)
    keys = _hash(np.arange(ROUNDS, dtype=np.uint64), np.uint64(seed))
    values = positions.numpy().astype(np.uint64)
    # The network shuffles range(num_left * num_right), whose last numbers are too large. Such a
    # number goes through again; its way began in range(length), so it comes back there.
    is_too_large = np.ones(len(values), bool)
    while is_too_large.any():
        values[is_too_large] = _network(values[is_too_large], num_left, num_right, keys)
        is_too_large = values >= length
    return torch.from_numpy(values.astype(np.int64))


def _network(values: np.ndarray, num_left: int, num_right: int, keys: np.ndarray) -> np.ndarray:
    left, right = np.divmod(values, np.uint64(num_right))
    for number, key in enumerate(keys):
        if number % 2:
            right = (right + _hash(left, key)) % np.uint64(num_right)
        else:
            left = (left + _hash(right, key)) % np.uint64(num_left)
    found: np.ndarray = left * np.uint64(num_right) + right
    return found


def _hash(values: np.ndarray, key: np.uint64) -> np.ndarray:
    """Return 63 bits that depend on all bits of a value and of the key (as splitmix64 does)."""
    values = values * np.uint64(0x9E3779B97F4A7C15) + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: np.ndarray = (values ^ (values >> np.uint64(31))) >> np.uint64(1)
    return found
