"""Random architectures, and models of them."""

from __future__ import annotations

from typing import Any, get_args

import torch
from hypothesis import strategies as st

from seqclf.classifier import Classifier
from seqclf.data.reading import Reading
from seqclf.model import Architecture, ImageOrder, Pooling

WORDS = ("a", "b", "c", "d")
ROCKETS: list[dict[str, Any]] = [
    {"rocket": 0, "dilations": ()},
    {"rocket": 84, "dilations": (1,)},
    {"rocket": 336, "dilations": (1, 2)},
]


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Draw a value for every field: one that is missing here fails the test below."""
    kind = draw(st.sampled_from(["features", "features", "tokens", "text", "images"]))
    num_features = draw(st.integers(1, 3))
    lengths = (1, draw(st.integers(1, 12)))
    fields: dict[str, Any] = {
        "input_size": num_features if kind in ("features", "images") else 1,
        "classes": tuple(f"class {number}" for number in range(draw(st.integers(2, 4)))),
        "scale": 1.0,
        "read": "rows",
        "hidden_size": draw(st.integers(1, 6)),
        "num_layers": draw(st.integers(1, 3)),
        "bidirectional": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0.0, 0.5])),
        "pooling": draw(st.sampled_from(get_args(Pooling))),
        "num_tokens": {"tokens": 1 + len(WORDS), "text": 256}.get(kind, 0),
        "embedding_size": draw(st.integers(1, 4)),
        "mean": (),
        "std": (),
        "tokens": WORDS if kind == "tokens" else (),
        "features": (),
        "max_length": draw(st.none() | st.integers(1, 8)),
        "keep": draw(st.sampled_from(["first", "last"])),
        "stack": draw(st.integers(1, 4)),
        **draw(st.sampled_from(ROCKETS if kind not in ("tokens", "text") else ROCKETS[:1])),
        "reading": Reading(),
        "lengths": lengths,
        "temperature": draw(st.sampled_from([1.0, 0.5, 3.0])),
    }
    if kind == "images":
        read = draw(st.sampled_from(get_args(ImageOrder)))
        fields |= {"scale": 16.0, "read": read}
        if read == "columns":
            fields["input_size"] = min(num_features, fields["max_length"] or num_features)
        elif read != "rows":
            num_pixels = draw(st.integers(1, 4)) * draw(st.integers(1, 4))
            fields |= {"input_size": 1, "lengths": (num_pixels, num_pixels)}
    if kind == "features":
        names = tuple("xyz"[:num_features])
        has_gaps = draw(st.booleans())
        measured = draw(st.sets(st.sampled_from(names))) if has_gaps else set()
        chosen = tuple(name for name in names if name in measured)
        size = num_features + len(chosen)
        fields |= {
            "input_size": size,
            "features": (*names, *(f"{name} measured" for name in chosen)),
            "mean": tuple(draw(st.sampled_from([-0.5, 0.1])) for _ in range(size)),
            "std": tuple(draw(st.sampled_from([0.3, 2.0])) for _ in range(size)),
            "reading": Reading(
                fill_missing=has_gaps,
                measured=chosen,
                offset=draw(st.sampled_from([(), (1e9,) * num_features])),
            ),
        }
    assert set(fields) == set(Architecture.model_fields)
    return Architecture.model_validate(fields)


def make(architecture: Architecture, seed: int = 0) -> Classifier:
    """Return a classifier with random weights, which tell classes apart."""
    torch.manual_seed(seed)
    model = architecture.build("orthogonal").eval()
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name == "rocket.thresholds":
            buffer.uniform_(-1, 1)
        elif name in ("rocket.widths", "rocket.mean", "rocket.factor"):
            buffer.uniform_(0.5, 2)
    return Classifier(model, architecture)
