"""`seqclf export`: the file of an exported model, checked before it is written.

model.onnx                       --out
DIR/NAME/config.pbtxt            --triton DIR: a folder as Triton's model repository wants it
DIR/NAME/labels.txt              the classes, one a line
DIR/NAME/1/model.onnx
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path

import onnx
import onnxruntime.quantization
import torch

from seqclf.data.batches import evaluation_batches
from seqclf.data.sequences import Sequences
from seqclf.errors import UserError
from seqclf.evaluate import Metrics
from seqclf.export.check import TOLERANCE, Comparison, compare, compare_steps, open_session
from seqclf.export.network import LOGITS, build_network
from seqclf.export.raw import INPUT, LENGTHS, has_lengths
from seqclf.export.stepwise import build_step
from seqclf.model import Architecture, LSTMClassifier
from seqclf.run.files import make_directory, replace_file

MOST_BYTES = 2**31 - 2**20  # of a file of protocol buffers, a little less than 2 GiB
BATCH = 256  # examples that are measured at once
TRITON_BATCH = 64
TRITON_TYPES = {1: "TYPE_FP32", 7: "TYPE_INT64", 11: "TYPE_FP64"}  # by the number of ONNX's type


def export_model(
    model: LSTMClassifier, architecture: Architecture, *, by_steps: bool = False
) -> tuple[onnx.ModelProto, Comparison]:
    """Return a model as ONNX, and how far its probabilities are from torch's.

    Raises UserError for a model that cannot be exported, or whose probabilities differ.
    """
    if 4 * architecture.num_parameters > MOST_BYTES:
        raise UserError(
            f"no export: {architecture.num_parameters:,} parameters, of which an ONNX file "
            f"holds at most {MOST_BYTES // 4:,}"
        )
    onnx_model = (build_step if by_steps else build_network)(model, architecture)
    onnx.checker.check_model(onnx_model, full_check=True)
    check = compare_steps if by_steps else compare
    return onnx_model, check(onnx_model, model, architecture)


def quantise(onnx_model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with weights of 8 bits, whose answers differ a little."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        before.write_bytes(onnx_model.SerializeToString())
        logging.disable(logging.WARNING)  # its advice to prepare the model helps other models
        try:
            onnxruntime.quantization.quantize_dynamic(before, after)
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(after)


def measure(
    onnx_model: onnx.ModelProto, architecture: Architecture, sequences: Sequences
) -> Metrics:
    """Measure an exported model on a split, whose values are as the model's training data were.

    Raises UserError if the split's numbers are not what the file reads.
    """
    if architecture.reading.offset or architecture.reading.measured:
        raise UserError(
            "--int8: the prepared data lack what the file reads (an offset, or values that were "
            "measured), so it cannot be measured on them; export without --int8"
        )
    session = open_session(onnx_model)
    num_classes = len(architecture.classes)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    loss = 0.0
    kind = torch.int64 if architecture.num_tokens else torch.float32
    for ids in evaluation_batches(sequences.lengths, 0, len(sequences), BATCH):
        values, lengths = sequences.rows(ids)
        inputs = {INPUT: values.to(kind).numpy()}
        if has_lengths(architecture):
            equal = torch.full((len(values),), values.shape[1])
            inputs[LENGTHS] = (equal if lengths is None else lengths).numpy()
        logits_BC = torch.from_numpy(session.run([LOGITS], inputs)[0])
        labels_B = sequences.labels[ids]
        loss += float(torch.nn.functional.cross_entropy(logits_BC, labels_B, reduction="sum"))
        for truth, guess in zip(labels_B.tolist(), logits_BC.argmax(1).tolist(), strict=True):
            confusion[truth, guess] += 1
    return Metrics(loss / len(sequences), confusion)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there already, or a name that is no model's. Raises UserError."""
    if path.suffix.lower() != ".onnx":
        raise UserError(f"--out {path}: expected a name that ends in .onnx")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} exists already; replace it with --overwrite, or name another")


def write_model(onnx_model: onnx.ModelProto, path: Path) -> None:
    """Write the file, whole or not at all. Raises UserError."""
    try:
        replace_file(path, onnx_model.SerializeToString())
    except OSError as error:
        raise UserError(f"{path}: cannot write it: {error.strerror or error}") from None


def triton_folder(repository: Path, name: str) -> Path:
    """Return a model's folder in a repository of Triton; letters that it may not like are `_`."""
    return repository / (re.sub(r"[^\w.-]", "_", name) or "model")


def write_triton(onnx_model: onnx.ModelProto, folder: Path, classes: tuple[str, ...]) -> None:
    """Write a model's folder; the model itself comes last. Raises UserError."""
    try:
        make_directory(folder / "1")
        # A line is a name as it is in the metadata, so only a line break within it must go.
        labels = "".join(f"{' '.join(name.splitlines())}\n" for name in classes)
        replace_file(folder / "labels.txt", labels.encode())
        replace_file(folder / "config.pbtxt", triton_config(onnx_model, folder.name).encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot write it: {error.strerror or error}") from None
    write_model(onnx_model, folder / "1" / "model.onnx")


def triton_config(onnx_model: onnx.ModelProto, name: str) -> str:
    """Return config.pbtxt: Triton puts requests of one shape into a batch."""
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {TRITON_BATCH}"]
    for role, values in (("input", onnx_model.graph.input), ("output", onnx_model.graph.output)):
        for value in values:
            kind = value.type.tensor_type
            dims = [dim.dim_value or -1 for dim in kind.shape.dim][1:]
            parts = [f'name: "{value.name}"', f"data_type: {TRITON_TYPES[kind.elem_type]}"]
            # An input must have a dimension besides the batch, which `reshape` takes away again.
            parts.append(f"dims: {dims}" if dims else "dims: [1] reshape: { shape: [] }")
            if value.name == "probabilities":
                parts.append('label_filename: "labels.txt"')
            lines.append(f"{role} [ {{ {' '.join(parts)} }} ]")
    return "\n".join([*lines, "dynamic_batching { }"]) + "\n"


def in_words(found: Comparison) -> str:
    """Return what a comparison found, for people."""
    return (
        f"checked     {found.num_sequences} made-up sequences in onnxruntime: probabilities differ "
        f"from torch by at most {found.difference:.1g} (of {TOLERANCE:g} allowed)"
    )
