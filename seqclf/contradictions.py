"""What the description of a model cannot be: a config.json may come from anybody.

seqclf writes no such description. One that is damaged, or made to do harm, is refused before a
model is built from it.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel

from seqclf.rocket import MOST_DILATIONS, NUM_KERNELS


def contradiction(architecture: BaseModel) -> str | None:
    """Return why no model can be as an Architecture describes it; None if one can."""
    found = architecture.model_dump()
    size, measured = found["input_size"], found["reading"]["measured"]
    found["reading.offset"] = found["reading"]["offset"]
    for name, wanted in (
        *((name, size) for name in ("mean", "std", "features")),
        ("reading.offset", size - len(measured)),  # features that a file has
        ("tokens", found["num_tokens"] - 1),
    ):
        if len(found[name]) not in (0, wanted):
            return f"{name}: {len(found[name]):,} of them, expected {wanted:,}"
    if bool(found["mean"]) != bool(found["std"]):
        return "mean, std: one of them without the other"
    if not torch.tensor([*found["mean"], 0.0]).isfinite().all():
        return "mean: a number that float32 does not hold"
    if not (torch.tensor([*found["std"], 1.0]) > 0).all():
        return "std: a number that float32 does not tell from 0"
    if unknown := set(measured) - set(found["features"]):
        return f"reading.measured: {min(unknown)!r} is no feature"
    for name in ("classes", "tokens"):
        if len(set(found[name])) < len(found[name]):
            return f"{name}: a name that comes twice"
        if any("\ud800" <= letter <= "\udfff" for letter in "".join(found[name])):
            return f"{name}: half of a letter of UTF-16"
    if found["read"] in ("pixels", "permuted") and size != 1:
        return f"read: {found['read']}, whose steps have 1 number, not {size:,}"
    dilations = found["dilations"]
    if bool(found["rocket"]) != bool(dilations):
        return "rocket, dilations: one of them without the other"
    if len(dilations) > MOST_DILATIONS or dilations != tuple(2**n for n in range(len(dilations))):
        return "dilations: not the first powers of two"
    if dilations and found["rocket"] % (each := NUM_KERNELS * len(dilations)):
        return f"rocket: {found['rocket']:,}, no multiple of {each:,}"
    if dilations and found["num_tokens"]:
        return "rocket: fixed convolutions of tokens"
    if found["lengths"] and found["lengths"][0] > found["lengths"][1]:
        return "lengths: the shortest sequence is longer than the longest"
    return None
