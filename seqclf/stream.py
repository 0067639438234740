"""A stream: the probabilities of all classes after each step of one sequence, as the steps come."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from seqclf.data.readers.rows import BadRow, RowError
from seqclf.errors import UserError
from seqclf.inputs import Reader, as_row, num_features_of, problem_of, to_array
from seqclf.model import Architecture, LSTMClassifier
from seqclf.predict import fit_row, kind_of, to_values
from seqclf.prefixes import to_probabilities
from seqclf.stepwise import Carried, read_step, reason_against


@dataclass
class _Window:
    """A window that is being read; without windows the whole sequence."""

    carried: Carried = field(default_factory=Carried)
    num_steps: int = 0
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def read(self, model: LSTMClassifier, step: Tensor, max_length: int | None) -> None:
        """Read a step, [1, F] or a token [1]; steps beyond `max_length` change nothing."""
        self.num_steps += 1
        if max_length is not None and self.num_steps > max_length:
            return
        logits_BC, self.carried = read_step(model, self.carried, step)
        found_C = to_probabilities(model, logits_BC)[0]
        self.probabilities = found_C.double().numpy()


class Stream:
    """Reads one sequence step by step. `Classifier.stream` makes one.

    After each step it knows what `predict_proba` says of the steps so far, to about 1e-6, for the
    work of one step: it carries the state of the LSTM. So the thousandth step costs what the first
    one does. Of a model that was trained on windows it carries the state of each window that is
    open, and gives the mean of the windows that are whole.

    A stream belongs to one sequence and to one thread at a time. Raises UserError for a model that
    reads in both directions, has fixed convolutions, or reads the last steps of a sequence only.

    >>> stream = classifier.stream()  # doctest: +SKIP
    >>> for step in steps:  # doctest: +SKIP
    ...     if stream.push(step).max() > 0.9:
    ...         break
    """

    def __init__(self, model: LSTMClassifier, architecture: Architecture, reader: Reader) -> None:
        if (reason := reason_against(architecture)) is not None:
            raise UserError(f"no stream of steps with this model: {reason}")
        self.num_steps = 0
        """How many steps were read."""
        self._model = model
        self._architecture = architecture
        # The steps to come are not known, so no gap can be filled, and no step is padding.
        options = replace(reader.options, fill_missing=False, pad_value=None)
        self._reader = reader._replace(options=options)
        self._token_numbers = {name: number for number, name in enumerate(architecture.tokens, 1)}
        self._open: list[_Window] = []
        self._num_whole = 0
        self._sum_C = np.zeros(len(architecture.classes))  # of the probabilities of whole windows
        self._found_C = self._sum_C

    @torch.inference_mode()
    def push(self, step: object) -> np.ndarray:
        """Read one more step; return the probabilities of the classes so far, float64 [C].

        A step is an array [F] of raw numbers, or one number where a step has one; a token; or, of a
        text, one or more letters. Of an image it is a row, a column or a pixel, as the model reads
        it. Raises UserError, and reads nothing, if the model cannot read the step.

        >>> stream.push([0.12, 9.81])  # doctest: +SKIP
        array([0.93, 0.07])
        """
        try:
            values = self._values_of(step)
        except RowError as error:
            where = f"step {self.num_steps}"
            raise self._reader.refuse(where, problem_of(error, self._reader)) from None
        values = values.to(self._model.out.weight.device)
        for one_step in self._model.steps(values[None]).unbind(1):
            self._read(one_step)
        return self._found_C.copy()

    def _values_of(self, step: object) -> Tensor:
        """Return a step as a sequence that the model reads, [T, F] or tokens [T]."""
        architecture = self._architecture
        kind = kind_of(architecture)
        sequence: object = [step] if kind == "tokens" else step
        if kind == "features":
            num_features = num_features_of(architecture)
            numbers = to_array(step)
            if numbers.shape != (num_features,) and not (numbers.ndim == 0 and num_features == 1):
                raise RowError(f"shape {numbers.shape}, where one step ({num_features},) is due")
            numbers = numbers.reshape(1, num_features)
            sequence = numbers.T if architecture.read == "columns" else numbers
        row = fit_row(as_row(sequence, self._reader), architecture)
        if isinstance(row, BadRow):
            raise RowError(row.problem)
        return to_values([row], architecture, self._token_numbers)

    def _read(self, step: Tensor) -> None:
        reading = self._architecture.reading
        window = reading.window
        begins = self.num_steps == 0
        if window is not None:
            begins = self.num_steps % (reading.stride or window) == 0
        if begins:
            self._open.append(_Window())
        self.num_steps += 1
        for one in self._open:
            one.read(self._model, step, self._architecture.max_length)
        if window is not None and self._open and self._open[0].num_steps == window:
            self._sum_C = self._sum_C + self._open.pop(0).probabilities
            self._num_whole += 1
        if self._num_whole:
            self._found_C = self._sum_C / self._num_whole
        else:
            self._found_C = self._open[0].probabilities
