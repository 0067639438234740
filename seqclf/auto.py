"""What `auto` becomes for model, noise and crops. docs/recipes.md has the reasons."""

from __future__ import annotations

import math

from seqclf.config.settings import MANY_EXAMPLES
from seqclf.data.alignment import alignment
from seqclf.data.sequences import Sequences

LONG = 500  # steps from which convolutions pay with many examples
FEATURES = 5000  # of fixed convolutions, where they pay
NOISE = 0.2  # in deviations of a feature
CROP = 0.5  # the least share of a sequence, where training takes stretches of them
CROPPED_STEPS = 64  # fewer are not cropped
ALIGNED = 0.08  # the alignment from which sequences stay whole


def choose_rocket(examples: Sequences, *, longest: int) -> int:
    """Return about how many features of fixed convolutions there are: none of tokens.

    Many examples have them if they are long, and images, too: nobody has measured others.
    """
    is_worth_it = _are_few_measured(examples) or longest >= LONG
    return FEATURES if is_worth_it and not examples.num_tokens else 0


def choose_stack(examples: Sequences, *, longest: int) -> int:
    """Return how many steps the LSTM reads at once: one token, and more of longer sequences."""
    if examples.num_tokens:
        return 1
    return max(1, round(math.sqrt(usual_length(examples, longest)) / 4))


def choose_noise(examples: Sequences, *, rocket: int) -> float:
    """Return how much noise is added: none to small shapes, which convolutions see."""
    return NOISE if _are_few_measured(examples) and not rocket else 0.0


def choose_crop(examples: Sequences, *, longest: int) -> float:
    """Return the least share of a sequence that training takes: not all, if it starts anywhere.

    Many or short sequences stay whole: nobody has measured these.
    """
    if not _are_few_measured(examples) or usual_length(examples, longest) < CROPPED_STEPS:
        return 1.0
    return CROP if alignment(examples) < ALIGNED else 1.0


def _are_few_measured(examples: Sequences) -> bool:
    """Return whether there are few examples, of numbers that a person measured."""
    return len(examples) < MANY_EXAMPLES and bool(examples.std)


def usual_length(examples: Sequences, longest: int) -> int:
    """Return the median length; of sequences of one length that length."""
    return longest if examples.lengths is None else int(examples.lengths.median())
