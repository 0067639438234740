"""Save a run's checkpoints, and go on from them. All ranks call, the main process reads and writes.

The other ranks are sent the main process's tensors, so the run directory need exist on its host
only.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from seqclf.config.settings import Value
from seqclf.errors import UserError
from seqclf.run import resume
from seqclf.run.checkpoint import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    Checkpoint,
    checkpoint_name,
    commit_checkpoint,
    encode_tensors,
    load_tensors,
    moment_tensors,
    newest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
)
from seqclf.run.directory import Run
from seqclf.run.records import State
from seqclf.run.weights import start_from_weights

MAX_FAILED_SAVES = 3


def save(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Make a checkpoint, unless this step has one; return whether this step has one now.

    A save that fails (a full disk) is warned about. That of the best step is kept in memory, and
    tried again with the next save. Raises UserError after MAX_FAILED_SAVES in a row, or if the
    directory is not there any more.
    """
    state = run.state
    if state.step == run.saved_step:
        return True
    problem = run.runtime.from_main(lambda: _write_checkpoint(run, model, optimizer))
    run.saved_at = time.monotonic()
    if problem is None:
        run.saved = state.model_copy()
        run.num_failed_saves = 0
        return True
    run.num_failed_saves += 1
    run.console.say(f"warning: checkpoint of step {state.step} not saved: {problem}")
    if run.num_failed_saves == MAX_FAILED_SAVES:
        raise UserError(
            f"{MAX_FAILED_SAVES} checkpoints in a row could not be saved: {problem}; make "
            f"room at {run.path}: the same command goes on"
        )
    return False


def _write_checkpoint(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> Value:
    """Write a checkpoint and delete old ones; return why it could not be written, or None."""
    assert run.metrics_log is not None
    state = run.state
    stored_state = state.model_copy(
        update={
            "scaler": run.runtime.scaler_state(),
            "metrics_bytes": run.metrics_log.num_bytes,
        }
    )
    files = {
        MODEL_FILE: encode_tensors(model.state_dict()),
        OPTIMIZER_FILE: encode_tensors(moment_tensors(model, optimizer)),
        STATE_FILE: stored_state.model_dump_json(indent=1).encode(),
    }
    try:
        run.check_in_place()
        # A checkpoint counts on the lines before it, so these become durable first.
        run.metrics_log.flush()
        # And on the checkpoint of its best step, which a full disk may have held up.
        for step in sorted({*run.unsaved_best} & {state.best_step}):
            _commit(run, step, run.unsaved_best[step])
        _commit(run, state.step, files)
    except OSError as error:
        if state.step == state.best_step:
            run.unsaved_best = {state.step: files}
        return str(error)
    run.unsaved_best = {}
    try:
        prune_checkpoints(
            run.checkpoints,
            keep_last=run.setup.config.checkpoint.keep_last,
            keep=[state.best_step] if state.best_step else [],
        )
    except (OSError, UserError) as error:
        run.console.say(f"warning: old checkpoints cannot be deleted: {error}")
    run.write_status("running")
    return None


def _commit(run: Run, step: int, files: dict[str, bytes]) -> None:
    commit_checkpoint(
        run.checkpoints,
        step,
        files,
        world_size=run.runtime.world_size,
        made_with=run.facts.versions,
    )


def restore(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Load the newest checkpoint that verifies into model and optimizer, and begin.

    Raises UserError if there are checkpoints, but no good one, or if the settings that made it
    differ where it matters.
    """
    weights: dict[str, Tensor] = model.state_dict()
    moments = moment_tensors(model, optimizer)

    def load() -> Value:
        checkpoint, rejected = newest_checkpoint(run.checkpoints)
        for reason in rejected:
            run.console.say(f"warning: checkpoint passed over: {reason}")
        if checkpoint is None and rejected:
            raise UserError(f"no checkpoint in {run.checkpoints} is whole; see above")
        if checkpoint is None:
            _take_first_weights(run, weights)
            run.begin(State())
            return None
        checkpoint.load_into(MODEL_FILE, weights)
        checkpoint.load_into(OPTIMIZER_FILE, moments)
        state = checkpoint.state
        _compare(run, state)
        run.begin(state)
        return state.model_dump()

    answer = run.runtime.from_main(load)
    if answer is None:
        if run.setup.config.init_from is not None:
            run.runtime.broadcast(list(weights.values()))
        run.state = State()
        return run.state
    run.state = State.model_validate(answer)
    run.saved = run.state.model_copy()
    run.runtime.broadcast([*weights.values(), *moments.values()])
    run.runtime.load_scaler_state(run.state.scaler)
    run.console.say(f"resumed     step {run.state.step} from {run.checkpoints}")
    return run.state


def _compare(run: Run, state: State) -> None:
    """Refuse settings under which the steps already done would have been others; say the rest."""
    stored = run.stored or resume.require_stored(run.path)
    resume.check_steps_done(stored, run.setup, state.step)
    resume.check_choices(stored, run.setup, state)
    for line in resume.other_rounding(stored, run.setup, run.facts):
        run.console.say(line)


def _take_first_weights(run: Run, weights: dict[str, Tensor]) -> None:
    """Start from the weights of `init_from`, if it is set, and keep their sha256."""
    source = run.setup.config.init_from
    if source is None:
        return
    sha256, line = start_from_weights(Path(source), weights, run.setup.architecture)
    if run.facts.init_sha256 not in (None, sha256):
        raise UserError(
            f"{run.path} began with other weights than init_from: {source} "
            "holds now; put the old ones back, or choose another --run_dir"
        )
    run.facts.init_sha256 = sha256
    run.console.say(line)


def restore_best(run: Run, model: nn.Module) -> bool:
    """Load the best evaluation's weights; return whether there are any.

    If there are none, the last weights stay, with a warning that says why.
    """
    state = run.state
    weights: dict[str, Tensor] = model.state_dict()

    def load() -> bool:
        try:
            unsaved = run.unsaved_best.get(state.best_step)
            if unsaved is None:
                _read_best(run).load_into(MODEL_FILE, weights)
            else:
                load_tensors(unsaved[MODEL_FILE], weights, where="the best weights, in memory")
        except UserError as error:
            run.console.say(f"warning: the result is the last weights, not the best: {error}")
            return False
        metric = run.setup.config.checkpoint.metric
        form = "{:.2%}" if metric == "val/accuracy" else "{:.4f}"
        run.console.say(
            f"best        step {state.best_step}: {metric} {form.format(state.best[metric])}"
        )
        validation = run.setup.splits.validation
        gain = abs(state.best[metric] - state.metrics[metric])
        if metric != "val/loss" and validation is not None and 0 < gain <= 1 / len(validation):
            run.console.say(
                f"note        one of the {len(validation):,} validation examples weighs "
                f"{1 / len(validation):.2%}: the last step may be as good"
            )
        return True

    if not run.runtime.from_main(load):
        return False
    run.runtime.broadcast([*weights.values()])
    return True


def _read_best(run: Run) -> Checkpoint:
    """Read the checkpoint of the best evaluation. Raises UserError if there is none."""
    if not run.state.best:
        metric = run.setup.config.checkpoint.metric
        raise UserError(f"no evaluation with a {metric} that is a number was saved")
    return read_checkpoint(run.checkpoints / checkpoint_name(run.state.best_step))
