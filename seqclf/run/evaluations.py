"""What an evaluation found -> the record that its file holds."""

from __future__ import annotations

from seqclf.data.pictures import take_picture
from seqclf.data.sequences import Sequences
from seqclf.evaluate import Metrics
from seqclf.run.records import CalibratedRecord, Evaluation, MistakeRecord, finite_or_null


def to_evaluation(split: str, step: int, metrics: Metrics, sequences: Sequences) -> Evaluation:
    """Put together evaluation/SPLIT.json, with pictures of the worst mistakes."""
    classes = sequences.classes
    mistakes = [
        MistakeRecord(
            example=mistake.example,
            name=sequences.name(mistake.example) if sequences.origins else "",
            truth=classes[mistake.truth],
            guess=classes[mistake.guess],
            probability=mistake.probability,
            picture=take_picture(sequences, mistake.example),
        )
        for mistake in metrics.mistakes
    ]
    content: dict[str, CalibratedRecord] = {}
    if metrics.calibrated is not None:
        temperature, loss, calibration = metrics.calibrated
        finite = finite_or_null({"loss": loss})["loss"]
        content["calibrated"] = CalibratedRecord(
            temperature=temperature, loss=finite, calibration=calibration.tolist()
        )
    return Evaluation(
        step=step,
        metrics=finite_or_null(metrics.named(split)),
        classes=classes,
        confusion=metrics.confusion.tolist(),
        calibration=metrics.calibration.tolist(),
        mistakes=mistakes,
        **content,
    )
