"""A run from its config to its result, on any number of processes. `train_steps` is the loop."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import nn

from seqclf import calibrate
from seqclf.config.settings import Config, Value
from seqclf.console import Console
from seqclf.data import sources
from seqclf.data.sequences import Sequences
from seqclf.errors import FAILED, PREEMPTED, USAGE_ERROR, UserError
from seqclf.evaluate import Interrupted, evaluate
from seqclf.metrics import best_of
from seqclf.model import LSTMClassifier
from seqclf.optim import make_optimizer
from seqclf.processes.memory import least_memory, refuse_too_large
from seqclf.processes.runtime import Runtime
from seqclf.processes.signals import Signals
from seqclf.processes.start import keep_precision, limited, start_runtime
from seqclf.run.directory import Run, open_run
from seqclf.run.records import MODEL, State
from seqclf.run.resume import kept_precision
from seqclf.run.saves import restore, restore_best, save
from seqclf.settle import Setup, choose_run_dir, config_of_main, find_data, settle
from seqclf.step import train_step
from seqclf.step_log import StepLog
from seqclf.terminal import closing, opening, where_it_goes_on
from seqclf.tracking.mirrors import Mirrors


def train_steps(
    setup: Setup, run: Run, state: State, model: nn.Module, optimizer: torch.optim.Optimizer
) -> bool:
    """Train until the end or a signal; return whether the run has finished.

    All but the step itself happens at the boundary before it: evaluate, save, leave. Nothing there
    moves a weight, so an evaluation that a signal ends is done again on resume.
    """
    config, plan, runtime = setup.config, setup.plan, run.runtime
    prepared = runtime.prepare(model, reduces=not config.train.shards)
    log = StepLog(setup, run, state, model)
    run.console.open(state.step, plan.num_steps)
    workers, limit_s = setup.num_workers(), config.distributed.timeout_s
    batches = runtime.loader(
        setup.splits.train, plan, start=state.step, workers=workers, limit_s=limit_s
    )
    with contextlib.closing(batches):  # its threads end, however this does
        while True:
            step = state.step
            is_last = step == setup.last_step(state.decay_from)
            runtime.alive()
            stop, clock_asks = runtime.agree(step, save=run.minutes_passed())
            if not stop and state.judged < step and (is_last or setup.evaluation_due(step)):
                with log.clock.paused():
                    stop = not judge(setup, run, state, model)
            finished = is_last and state.judged == step
            save_due = clock_asks or setup.save_due(step, best_step=state.best_step)
            if stop or finished or save_due:
                with log.clock.paused():
                    log.count_skipped()
                    save(run, model, optimizer)
            if stop or finished:
                return finished
            lr = setup.lr_at(step, state.decay_from)
            with log.clock.step():
                batch = log.clock.fetch(batches)
                stats = train_step(
                    runtime, prepared, optimizer, batch, config, lr, setup.class_weights
                )
            log.add(stats)
            state.step += 1
            run.console.step()
            if setup.log_due(state.step, setup.last_step(state.decay_from)):
                log.write(lr)


def judge(setup: Setup, run: Run, state: State, model: nn.Module) -> bool:
    """Evaluate the weights of this step, and choose by it if asked to; False if a signal came."""
    with suppress(Interrupted):
        split, sequences = setup.splits.watched
        if len(sequences):
            state.metrics = measure(setup, run, model, split, sequences, step=state.step)
        state.judged = state.step
        if setup.config.chooses_best:
            metric, warmup_steps = setup.config.checkpoint.metric, setup.num_warmup_steps
            choose(state, metric, warmup_steps=warmup_steps, patience=setup.patience)
    return state.judged == state.step


def measure(
    setup: Setup, run: Run, model: nn.Module, split: str, sequences: Sequences, *, step: int
) -> dict[str, float]:
    """Evaluate the weights of a step on a split, keep it if it may be the result's, and log it.

    Collective. Raises Interrupted if a signal comes meanwhile.
    """
    config = setup.config
    metric = config.checkpoint.metric
    evaluation = evaluate(
        run.runtime,
        model,
        sequences,
        batch_size=config.eval.batch_size,
        shards=config.train.shards,
    )
    metrics = evaluation.named(split)
    if not setup.takes_best or metric not in metrics or is_better(run.state, metrics, metric):
        run.write_evaluation(split, step, evaluation, sequences)
    run.log(step, metrics)
    return metrics


def is_better(state: State, metrics: dict[str, float], metric: str) -> bool:
    """Return whether an evaluation is better than the best so far; NaN is not.

    Of two that name as many examples right, the one with the lower loss is better: a small
    validation part cannot tell more by its accuracy.
    """
    if not state.best:
        return not math.isnan(metrics[metric])
    sign = -1 if best_of(metric) == "min" else 1
    if metrics[metric] == state.best[metric]:
        return metrics["val/loss"] < state.best["val/loss"]
    return sign * metrics[metric] > sign * state.best[metric]


def choose(state: State, metric: str, *, warmup_steps: int, patience: float) -> None:
    """Make the latest evaluation the best one if it is better; else wait, or lose patience.

    While the rate rises, nothing counts as waiting.
    """
    if is_better(state, state.metrics, metric):
        state.best = state.metrics
        state.best_step = state.step
        state.waited = 0
        return
    if state.step <= warmup_steps:
        return
    state.waited += 1
    state.longest_wait = max(state.longest_wait, state.waited)
    if not state.decay_from and state.waited >= patience:
        state.decay_from = state.step


# ---- around the loop


def train(
    config: Config,
    config_path: Path | str | None = None,
    flagged: Sequence[str] = (),
    signals: Signals | None = None,
    console: Console | None = None,
) -> int:
    """Train, evaluate and save as a config says; return the process's exit code.

    0: finished. 143: stopped by a signal; the same call goes on from its last checkpoint.
    `config_path` and `flagged` (the settings given as flags) name the run directory where `run_dir`
    does not. `signals` are the command line's; without them a second signal raises
    KeyboardInterrupt. A process that brings its own `console` is not the run's alone, so glibc
    keeps its settings there. Raises UserError for what the user can mend.
    """
    signals = signals or Signals()
    with ExitStack() as together:
        together.enter_context(limited(signals, config))
        runtime = start_runtime(config, signals, keeps_memory=console is None)
        console = console or Console(enabled=runtime.is_main, quiet=config.quiet)
        mirrors = Mirrors(console.say, enabled=runtime.is_main)
        exit_code = FAILED
        fallback = None
        try:
            runtime.alive()
            config = config_of_main(config, flagged, runtime)
            config, fallback = find_data(config, runtime, console.say)
            path = choose_run_dir(config, config_path, flagged, runtime)
            keep_precision(runtime, config, lambda: kept_precision(path, config))
            exit_code = train_in(path, config, runtime, console, mirrors)
            # The group ends before the mirrors do, so that no rank waits for a slow upload.
            runtime.close()
            together.close()  # from here on no process waits for another one
            if exit_code == 0 and runtime.is_main and config.report:
                write_page(path, console)
        except UserError:
            exit_code = USAGE_ERROR
            raise
        finally:
            console.close()
            # If only the main process fails, the others may wait for it in a collective: it leaves.
            waits = runtime.world_size == 1 or exit_code in (0, PREEMPTED)
            mirrors.close(exit_code, waits=waits)
    if fallback:
        console.say(fallback)
    return exit_code


def train_in(
    path: Path, config: Config, runtime: Runtime, console: Console, mirrors: Mirrors
) -> int:
    """Train in a run directory; return the exit code."""
    runtime.alive()
    setup = settle(config, sources.load(config.data, seed=config.seed))
    runtime.alive()
    num_bytes = least_memory(setup.config, setup.architecture, setup.longest, runtime.world_size)
    refuse_too_large(num_bytes, runtime.device)
    with open_run(path, setup, runtime, console) as run:
        decisions = [decision.line() for decision in runtime.decisions]
        console.say("\n".join([*decisions, *opening(setup, path)]))
        if run.finished():
            console.say(
                f"{path} is finished: nothing to do (another --run-dir starts anew)",
                if_quiet=f"{path}/{MODEL}",
            )
            runtime.from_main(lambda: _start_mirrors(mirrors, setup.config, path, is_finished=True))
            return 0
        # The run holds the same Setup: else the host would keep a second copy of the data.
        setup = run.setup = setup.on_device(runtime.device)
        model = setup.build_model().to(runtime.device)
        optimizer = make_optimizer(model, setup.config.optim)
        state = restore(run, model, optimizer)
        run.share_session()
        runtime.from_main(lambda: _start_mirrors(mirrors, setup.config, path, is_finished=False))
        finished = train_steps(setup, run, state, model, optimizer)
        console.close()
        with suppress(Interrupted):
            if finished:
                conclude(setup, run, state, model)
                sha256 = runtime.from_main(
                    lambda: run.finish(model, lambda: _card(setup, run, state))
                )
                if runtime.is_main:
                    text = closing(setup, path, state.metrics, model, str(sha256))
                    console.say(text, if_quiet=f"{path}/{MODEL}")
                return 0
        run.write_status("preempted")
        console.say(f"stopped by a signal; {where_it_goes_on(state.step, run.saved_step)}")
        return PREEMPTED


def _start_mirrors(mirrors: Mirrors, config: Config, path: Path, *, is_finished: bool) -> Value:
    mirrors.open(config.tracking, path, is_finished=is_finished)
    return None


def _card(setup: Setup, run: Run, state: State) -> dict[str, bytes]:
    from seqclf.report.card import card_files, make_card

    return card_files(make_card(setup, run.facts, state.metrics))


def conclude(setup: Setup, run: Run, state: State, model: LSTMClassifier) -> None:
    """Make the model and the metrics those of the result. Collective; redone if it is killed.

    Where there is a validation split, the temperature is fitted to it, and then a test split is
    evaluated, here and only here.
    """
    config, splits = setup.config, setup.splits
    if state.decay_from:
        run.console.say(
            f"ended       at step {state.step} of {setup.plan.num_steps}: {setup.patience} "
            f"evaluations in a row up to step {state.decay_from} had no better "
            f"{config.checkpoint.metric}; from there on the rate fell to zero"
        )
    step = state.step
    if setup.takes_best and restore_best(run, model):
        state.metrics = state.best
        step = state.best_step
    if splits.validation is not None:
        fitted = calibrate.fit(
            run.runtime,
            model,
            splits.validation,
            batch_size=config.eval.batch_size,
            shards=config.train.shards,
        )
        run.console.say(fitted.line)
        model.temperature = fitted.value
    if splits.validation is not None and len(splits.test):
        test_metrics = measure(setup, run, model, "test", splits.test, step=step)
        state.metrics = state.metrics | test_metrics


def write_page(path: Path, console: Console) -> None:
    """Write a finished run's report.html, unless it is whole and of this very run.

    If that fails, say so: the run stays finished.
    """
    from seqclf.report.stamp import is_current

    if os.environ.get("WANDB_SWEEP_ID") or is_current(path):
        return
    from seqclf.report.page import write_report

    try:
        console.say(f"report      {write_report([path], None, {})}")
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        console.say(f"warning: no report: {reason}; try again: seqclf report {path}")
