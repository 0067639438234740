"""The commands `evaluate` and `predict`: of one run, or of the mean of several.

Each imports what it needs when it is called, so that help and mistakes need not wait for torch.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from seqclf.cli.options import config_of_run, read_options
from seqclf.config.settings import Config
from seqclf.errors import UserError, printable_lines
from seqclf.run.records import FACTS, Facts, finite_or_null, read_record

if TYPE_CHECKING:
    from seqclf.data.sequences import Sequences
    from seqclf.predictions import Source
    from seqclf.stepwise import Early


def evaluate_command(arguments: Namespace) -> int:
    """Measure runs' results again on their data, or on a file with labels."""
    run_dirs, file = _runs_and_input(arguments)
    early = _early(arguments)
    if file is None:
        _refuse_read_options(arguments)
        if arguments.per is not None:
            raise UserError(f"--per {arguments.per}: needs INPUT, a file with labels")
        if len(run_dirs) == 1 and early is None:
            return _evaluate_again(arguments, run_dirs[0])
    from seqclf.measure import measure_examples, measure_file
    from seqclf.predictions import load_predictors, predict_examples
    from seqclf.processes.device import keep_to_quota
    from seqclf.terminal import measured_text

    keep_to_quota()
    members = load_predictors(run_dirs, raw=arguments.raw)
    classes = members[0].architecture.classes
    if file is not None:
        source = _source(arguments, file)
        measured = measure_file(members, source, arguments.per, early)
    else:
        splits = _split_of_each(arguments, run_dirs, "test")
        measured = measure_examples(members, predict_examples(members, splits, None, early))
    if arguments.json:
        content = measured.to_json(classes)
        print(json.dumps(content))
    else:
        print(printable_lines(measured_text(measured, classes)))
    return 0


def _evaluate_again(arguments: Namespace, run_dir: Path) -> int:
    """Print the metrics of a run's own splits, as metrics.jsonl has them."""
    if arguments.raw:
        raise UserError(
            "--raw: without INPUT the metrics are those of the raw logits; leave it out"
        )
    named = evaluate_run(config_of_run(arguments, run_dir), run_dir)
    if arguments.json:
        print(json.dumps(finite_or_null(named)))
        return 0
    for name, value in named.items():
        print(f"{name:<14} {value:.6f}")
    return 0


def evaluate_run(config: Config, run_dir: Path) -> dict[str, float]:
    """Measure a run's result again on the data of its config, in the precision it was trained in.

    Collective. Raises UserError if model or data are missing or do not belong together.
    """
    from seqclf.data import sources
    from seqclf.evaluate import evaluate
    from seqclf.processes.start import start_runtime
    from seqclf.run.weights import load_model

    model, architecture = load_model(run_dir)
    facts = read_record(run_dir / FACTS, Facts)
    runtime = start_runtime(config, trained_in=facts.precision)
    for decision in runtime.decisions:
        if decision.remedy and runtime.is_main:
            print(printable_lines(decision.line()), file=sys.stderr)
    try:
        splits = sources.load(config.data, seed=config.seed)
        if splits.test.classes != architecture.classes:
            raise UserError(f"{run_dir}: trained on other classes than '{splits.name}' has")
        model = model.to(runtime.device)
        runtime.prepare(model)
        if not splits.measured:
            raise UserError(
                f"{run_dir}: its data have no examples to measure it with; name a file with labels"
            )
        metrics: dict[str, float] = {}
        for split, sequences in splits.measured.items():
            result = evaluate(runtime, model, sequences, batch_size=config.eval.batch_size)
            metrics |= result.named(split)
        return metrics
    finally:
        runtime.close()


def predict_command(arguments: Namespace) -> int:
    """Name the classes of the sequences in a file, or of examples of a split beside the truth."""
    if arguments.count is not None and arguments.count < 1:
        raise UserError(f"--count {arguments.count}: must be at least 1")
    early = _early(arguments)
    run_dirs, file = _runs_and_input(arguments)
    from seqclf.processes.device import keep_to_quota

    keep_to_quota()
    if file is not None:
        from seqclf.predictions import load_predictors, predict_file

        for option in ("count", "split"):
            if (value := getattr(arguments, option)) is not None:
                raise UserError(f"--{option} {value}: chooses from the run's data, not {file}")
        source = _source(arguments, file)
        members = load_predictors(run_dirs, raw=arguments.raw)
        return predict_file(members, source, arguments.out, arguments.per, early)
    _refuse_read_options(arguments)
    is_written = arguments.out is not None or arguments.split is not None
    for option, value in (("until", arguments.until), ("per", arguments.per)):
        if value is not None and not is_written:
            shown = f"{value:g}" if option == "until" else value
            raise UserError(f"--{option} {shown}: needs INPUT, --split or --out")
    if len(run_dirs) > 1 and not is_written:
        raise UserError("several runs need INPUT, --split or --out; name one to see its guesses")
    from seqclf.predictions import load_predictors, write_split
    from seqclf.terminal import predictions_text, reading_text

    members = load_predictors(run_dirs, raw=arguments.raw)
    splits = _split_of_each(arguments, run_dirs, arguments.split or "test")
    if is_written:
        if arguments.count is not None:
            splits = [sequences.first(arguments.count) for sequences in splits]
        write_split(members, splits, arguments.out, arguments.per, early)
        return 0
    model = members[0].model
    print(f"{arguments.split or 'test'} examples, the first of each class in turn:")
    print(printable_lines(predictions_text(model, splits[0], arguments.count or 10)))
    print(printable_lines(f"\n{reading_text(model, splits[0], 0)}"))
    return 0


def _runs_and_input(arguments: Namespace) -> tuple[list[Path], Path | None]:
    """Return the paths of runs, and the last path if it is a file, or a folder, to read.

    The first path is a run, and so is each other one that looks like one. Raises UserError.
    """
    from seqclf.run.weights import is_model

    first, *others = arguments.paths
    runs = [first, *others]
    file = None
    if others and not is_model(others[-1]):
        *runs, file = runs
    for path in runs[1:]:
        if not is_model(path):
            raise UserError(
                f"{path}: no trained model; only the last path may be a file to read ({runs[0]} "
                "is the first run)"
            )
    return runs, file


def _split_of_each(arguments: Namespace, run_dirs: list[Path], name: str) -> list[Sequences]:
    """Return a split of the runs' data as each run reads it. Raises UserError if they differ."""
    from seqclf.data import sources

    found: list[Sequences] = []
    prints: list[str] = []
    for run_dir in run_dirs:
        config = config_of_run(arguments, run_dir)
        splits = sources.load(config.data, seed=config.seed)
        sequences = {"train": splits.train, "val": splits.validation, "test": splits.test}[name]
        if sequences is None or not len(sequences):
            word = {"val": "validation"}.get(name, name)
            raise UserError(f"--split {name}: the data of {run_dir} have no {word} examples")
        found.append(sequences)
        if len(run_dirs) > 1:
            prints.append(splits.fingerprint_of(sequences))
            if prints[-1] != prints[0]:
                raise UserError(f"{run_dir}: has other {name} examples than {run_dirs[0]}")
    return found


def _early(arguments: Namespace) -> Early | None:
    """Return when a sequence is decided before its end. Raises UserError."""
    until, min_steps = arguments.until, arguments.min_steps
    if until is None:
        if min_steps is not None:
            raise UserError(f"--min-steps {min_steps}: needs --until")
        return None
    from seqclf.stepwise import Early

    if not 0 < until <= 1:
        raise UserError(f"--until {until:g}: must be above 0 and at most 1")
    if min_steps is not None and min_steps < 1:
        raise UserError(f"--min-steps {min_steps}: must be at least 1")
    return Early(until, min_steps or 1)


def _source(arguments: Namespace, file: Path) -> Source:
    """Return the file to predict, and how to read it."""
    from seqclf.predictions import Source

    return Source(
        file,
        read_options(arguments),
        arguments.format,
        skip_bad=arguments.on_bad_row == "skip",
    )


def _refuse_read_options(arguments: Namespace) -> None:
    """Refuse options that say how to read a file, where there is none."""
    from seqclf.data.readers.rows import ReadOptions

    given, default = read_options(arguments), ReadOptions()
    for field in dataclasses.fields(ReadOptions):
        if getattr(given, field.name) != getattr(default, field.name):
            flag = {"split": "split-column"}.get(field.name, field.name.replace("_", "-"))
            raise UserError(
                f"--{flag}: says how to read a file; name the file after {arguments.paths[-1]}"
            )
    for name, usual in (("format", None), ("on_bad_row", "error")):
        if getattr(arguments, name) != usual:
            raise UserError(
                f"--{name.replace('_', '-')}: says how to read a file, and none is named"
            )
