"""Whether a result is one: what a model has to beat before its numbers mean anything."""

from __future__ import annotations

import math

from seqclf.data.readers.rows import quote
from seqclf.run.records import Evaluation


def why_no_result(evaluation: Evaluation, split: str) -> str | None:
    """Say in a sentence why the numbers of an evaluation are no result, and what to try; else None.

    The first reason counts: the model diverged; it, or the split, knows one class only; naming the
    commonest class always is as good; or equal probabilities for all classes have a lower loss.
    """
    classes, confusion = evaluation.classes, evaluation.confusion
    loss = evaluation.metrics.get(f"{split}/loss")
    supports = [sum(row) for row in confusion]
    named = [sum(column) for column in zip(*confusion, strict=True)]
    num_examples, most = sum(supports), max(supports)
    commonest = f"'{quote(classes[supports.index(most)])}'"
    hits = sum(row[number] for number, row in enumerate(confusion))
    chance_loss = math.log(len(classes))
    if loss is None or not math.isfinite(loss):
        return (
            f"the model has diverged: its {split} loss is not a finite number, and its guesses "
            "mean nothing; try a lower optim.lr, keep optim.clip, and look for huge values in the "
            "data"
        )
    if most == num_examples:
        return (
            f"all {num_examples:,} {split} examples are of class {commonest}, so the accuracy does "
            f"not tell whether classes are told apart; put examples of each class into {split}"
        )
    if max(named) == num_examples:
        only = f"'{quote(classes[named.index(num_examples)])}'"
        return (
            f"the model names every {split} example {only}, which {hits / num_examples:.2%} of "
            "them are: it tells nothing apart; try loss.class_weights balanced, more train.steps, "
            "or another optim.lr"
        )
    if hits <= most:
        return (
            f"{split} accuracy {hits / num_examples:.2%} is no better than naming each example "
            f"{commonest}, the commonest class ({most / num_examples:.2%}): the model has learnt "
            "nothing that holds for new examples; check the labels, then try more examples, more "
            "train.steps, or another optim.lr"
        )
    if loss > chance_loss:
        return (
            f"{split} loss {loss:.4g} is above {chance_loss:.4g}, that of equal probabilities for "
            f"all {len(classes)} classes: do not trust the probabilities, because the model is "
            "sure where it is wrong; try fewer train.steps, a lower optim.lr, or "
            "loss.label_smoothing 0.1"
        )
    return None
