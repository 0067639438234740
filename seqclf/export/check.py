"""An exported model beside torch: the same sequences, the largest difference.

Shapes: B batch, T steps, F features, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime

from seqclf.data.readers.rows import BadRow
from seqclf.data.reading import Reading
from seqclf.errors import UserError
from seqclf.export.network import PROBABILITIES
from seqclf.export.raw import INPUT, LENGTHS, has_lengths, input_type
from seqclf.export.stepwise import NEXT
from seqclf.inputs import Reader, as_rows, num_features_of
from seqclf.model import Architecture, LSTMClassifier
from seqclf.predict import kind_of, predict_rows
from seqclf.stream import Stream

TOLERANCE = 1e-5  # of a probability
MOST_STEPS = 500  # of a sequence that is compared, unless its length is fixed
MOST_STREAMED = 60  # steps that are compared one by one
USUAL_LENGTHS = (1, 30)  # where a model does not know the lengths of its training data
PADDING = 1e9  # what the array holds after a sequence's end


class Comparison(NamedTuple):
    """What a comparison found."""

    difference: float
    num_sequences: int


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Return a session of onnxruntime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure raises, and need not be printed, too
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers)


def to_inputs(sequences: Sequence[object], architecture: Architecture) -> dict[str, np.ndarray]:
    """Return a batch of raw sequences as the inputs of an exported model.

    Sequences are arrays [T, F] of numbers, lists of tokens or texts; images are arrays.
    """
    kind = kind_of(architecture)
    arrays: list[np.ndarray] = []
    numbers = {name: number for number, name in enumerate(architecture.tokens, 1)}
    for sequence in sequences:
        if kind == "text":
            arrays.append(np.frombuffer(str(sequence).encode(), np.uint8))
        elif kind == "tokens":
            assert isinstance(sequence, list)
            arrays.append(np.array([numbers.get(token, 0) for token in sequence]))
        else:
            arrays.append(np.asarray(sequence))
    lengths_B = np.array([len(array) for array in arrays])
    shape = (len(arrays), int(lengths_B.max()), *arrays[0].shape[1:])
    values = np.full(shape, PADDING, dtype_of(architecture))
    for row, array in zip(values, arrays, strict=True):
        row[: len(array)] = array
    return {INPUT: values} | ({LENGTHS: lengths_B} if has_lengths(architecture) else {})


def dtype_of(architecture: Architecture) -> np.dtype:
    """Return the type of the numbers of the input."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(input_type(architecture)))


def compare(
    onnx_model: onnx.ModelProto, model: LSTMClassifier, architecture: Architecture
) -> Comparison:
    """Compare probabilities with those of `seqclf predict`, at several shapes.

    Raises UserError if one differs by more than TOLERANCE.
    """
    session = open_session(onnx_model)
    architecture = architecture.model_copy(update={"reading": _of_whole(architecture)})
    reader = Reader.of(architecture, "keep")
    difference = 0.0
    num_sequences = 0
    for sequences in example_batches(architecture):
        found_BC = session.run([PROBABILITIES], to_inputs(sequences, architecture))[0]
        rows = as_rows(sequences, reader)
        for one, found_C in zip(predict_rows(model, architecture, rows), found_BC, strict=True):
            assert not isinstance(one, BadRow), one
            apart = float(np.abs(found_C - np.array(one.probabilities)).max())
            difference = max(difference, apart) if not math.isnan(apart) else math.nan
            refuse_difference(difference)
            num_sequences += 1
    return Comparison(difference, num_sequences)


def compare_steps(
    onnx_model: onnx.ModelProto, model: LSTMClassifier, architecture: Architecture
) -> Comparison:
    """Compare the probabilities after each step with those of a stream. Raises UserError."""
    session = open_session(onnx_model)
    streamed = architecture.model_copy(update={"reading": _of_whole(architecture)})
    reader = Reader.of(streamed, "keep")
    difference = 0.0
    batches = [batch for batch in example_batches(streamed) if len(batch) > 1]
    sequences = [sequence for batch in batches for sequence in batch]
    for sequence in sequences:
        stream = Stream(model, streamed, reader)
        values = to_inputs([sequence], streamed)[INPUT][0]
        states = first_states(session, num_rows=1)
        for number in range(min(len(values), MOST_STREAMED)):
            found, states = run_step(session, values[number : number + 1], states)
            one = sequence[number] if isinstance(sequence, list | str) else values[number]
            refuse_difference(apart := float(np.abs(found[0] - stream.push(one)).max()))
            difference = max(difference, apart)
    return Comparison(difference, len(sequences))


def first_states(session: onnxruntime.InferenceSession, *, num_rows: int) -> dict[str, np.ndarray]:
    """Return the states before the first step: zeros."""
    kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    return {
        one.name: np.zeros(
            [num_rows if dim == "batch" else dim for dim in one.shape], kinds[one.type]
        )
        for one in session.get_inputs()
        if one.name != INPUT
    }


def run_step(
    session: onnxruntime.InferenceSession, values: np.ndarray, states: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Read a step of each row; return the probabilities, [B, C], and the states after it."""
    names = [PROBABILITIES, *(NEXT + name for name in states)]
    found, *after = session.run(names, {INPUT: values, **states})
    return found, dict(zip(states, after, strict=True))


def _of_whole(architecture: Architecture) -> Reading:
    """Return how to read a sequence that is not cut: a file reads one window at a time."""
    whole = {"window": None, "stride": None, "on_label_change": "error"}
    return architecture.reading.model_copy(update=whole)


def refuse_difference(difference: float) -> None:
    """Refuse an export whose probabilities are not those of torch. Raises UserError."""
    if math.isnan(difference):
        raise UserError(
            "no export: the model's probabilities are no finite numbers, so it has diverged; "
            "train it again with a lower optim.lr"
        )
    if difference > TOLERANCE:
        raise UserError(
            f"no export: in onnxruntime a probability differs by {difference:.2g} from torch, of "
            f"which at most {TOLERANCE:g} is rounding; please report it with model/config.json"
        )


def example_batches(architecture: Architecture) -> Iterator[list[object]]:
    """Yield batches of made-up sequences: one and several, short and long, equal and unequal."""
    generator = np.random.default_rng(0)
    shortest, longest = architecture.lengths or USUAL_LENGTHS
    if not has_lengths(architecture):
        for size in (1, 4):
            yield [_image(architecture, generator) for _ in range(size)]
        return
    longest = min(longest, MOST_STEPS)
    shortest = min(shortest, longest)
    between = generator.integers(1, longest + 1, 5).tolist()
    for lengths in ([shortest], [longest], [1], [longest, 1, shortest], [longest] * 2, between):
        yield [_sequence(architecture, length, generator) for length in lengths]


def _image(architecture: Architecture, generator: np.random.Generator) -> np.ndarray:
    """Return an image [rows, columns] of the size that the model reads."""
    _, num_steps = architecture.lengths or USUAL_LENGTHS
    if architecture.read == "columns":
        shape = (architecture.input_size, num_steps)
    else:
        most = min(math.isqrt(num_steps), architecture.max_length or num_steps)
        num_rows = next(rows for rows in range(most, 0, -1) if num_steps % rows == 0)
        shape = (num_rows, num_steps // num_rows)
    pixels: np.ndarray = generator.uniform(0, architecture.scale, shape).astype(np.float32)
    return pixels


def _sequence(architecture: Architecture, length: int, generator: np.random.Generator) -> object:
    """Return a raw sequence like those of training, with gaps where these had any."""
    kind = kind_of(architecture)
    if kind == "text":
        return "".join(map(chr, generator.integers(32, 127, length)))
    if kind == "tokens":
        return generator.choice(["", *architecture.tokens], length).tolist()
    num_features = num_features_of(architecture)
    reading = architecture.reading
    values_TF = generator.normal(0, 2, (length, num_features))
    values_TF = values_TF * (architecture.std or (1.0,))[:num_features]
    values_TF += np.array((architecture.mean or (0.0,))[:num_features])
    if not architecture.mean:  # images, whose rows are the steps
        values_TF = generator.uniform(0, architecture.scale, (length, num_features))
    if reading.fill_missing and length > 1:
        values_TF[generator.random(values_TF.shape) < 0.2] = np.nan
        values_TF[0, np.isnan(values_TF).all(0).all()] = 0  # not all is missing
    return (values_TF + np.array(reading.offset or 0)).astype(dtype_of(architecture))
