"""`seqclf export`: from its arguments to its exit code."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

from seqclf.cli.options import config_of_run
from seqclf.errors import UserError, printable_lines
from seqclf.run.records import MODEL


def export_command(arguments: Namespace) -> int:
    """Write a trained model as an ONNX file."""
    try:
        from seqclf.export import files
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("onnx", "onnxruntime"):
            raise
        raise UserError(
            f"export needs {error.name}, which is not installed: pip install onnx onnxruntime"
        ) from None
    from seqclf.run.weights import find_weights

    if (arguments.out is None) == (arguments.triton is None):
        raise UserError("say where to: --out model.onnx, or --triton DIR")
    if arguments.int8 and arguments.state:
        raise UserError("--int8: not with --state, whose steps carry the error on; leave one out")
    if arguments.triton is not None and arguments.state:
        raise UserError(
            "--triton: not with --state, whose states are not in batches; leave one out"
        )
    test = None
    if arguments.int8:
        from seqclf.data import sources

        config = config_of_run(arguments, arguments.run_dir)
        test = sources.load(config.data, seed=config.seed).test
        if not len(test):
            raise UserError("--int8: the run has no test examples to measure it on; leave it out")
    path = Path(os.path.abspath(arguments.run_dir))
    name = path.parent.name if path.name == MODEL else path.name
    target: Path = arguments.out
    if arguments.triton is not None:
        target = files.triton_folder(arguments.triton, name) / "1" / "model.onnx"
    files.check_target(target, overwrite=arguments.overwrite)
    saved = find_weights(arguments.run_dir)
    architecture = saved.architecture
    onnx_model, found = files.export_model(saved.build(), architecture, by_steps=arguments.state)
    lines = [files.in_words(found)]
    if saved.step is not None:
        lines.insert(0, f"note: no result yet; the weights are of step {saved.step}")
    if test is not None:
        small = files.quantise(onnx_model)
        for title, one in (("float32", onnx_model), ("int8", small)):
            metrics = files.measure(one, architecture, test)
            num_bytes = one.ByteSize()
            lines.append(
                f"{title:<11} test accuracy {metrics.accuracy:.2%}, loss {metrics.loss:.4f}, "
                f"n = {len(test):,}; {num_bytes:,} bytes"
            )
        onnx_model = small
    if arguments.triton is not None:
        files.write_triton(onnx_model, target.parent.parent, architecture.classes)
    else:
        files.write_model(onnx_model, target)
    lines.append(f"wrote       {target}")
    print(printable_lines("\n".join(lines)))
    return 0
