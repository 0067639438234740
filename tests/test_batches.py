from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqclf.data.batches import BatchPlan, count_steps, epoch_order, mix, split_range

no_deadline = settings(deadline=None)
plans = st.builds(
    BatchPlan,
    length=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 2**40),
    num_steps=st.integers(1, 30),
)


@no_deadline
@given(plans, st.integers(0, 3))
def test_an_epoch_holds_every_example_once(plan: BatchPlan, epoch: int) -> None:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    batches = [plan.batch(step) for step in steps]
    assert torch.cat(batches).sort().values.tolist() == list(range(plan.length))
    assert all(len(batch) == plan.batch_size for batch in batches[:-1])


@no_deadline
@given(plans, st.integers(0, 29), st.integers(1, 9))
def test_the_shares_in_rank_order_are_the_global_batch(
    plan: BatchPlan, step: int, world_size: int
) -> None:
    whole = plan.share(step, 0, 1)
    shares = [plan.share(step, rank, world_size) for rank in range(world_size)]
    sizes = [len(share.ids) for share in shares]
    assert torch.cat([share.ids for share in shares]).tolist() == whole.ids.tolist()
    assert whole.ids.tolist() == plan.batch(step).tolist()
    assert max(sizes) - min(sizes) <= 1
    assert [share.first for share in shares] == [sum(sizes[:rank]) for rank in range(world_size)]
    assert {(share.step, share.total) for share in shares} == {(step, len(whole.ids))}
    assert all(share.filler in whole.ids for share in shares)


@no_deadline
@given(plans, st.data(), st.integers(1, 4))
def test_a_plan_starts_anywhere(plan: BatchPlan, data: st.DataObject, world_size: int) -> None:
    start = data.draw(st.integers(0, plan.num_steps))
    rank = data.draw(st.integers(0, world_size - 1))
    whole = [(s.step, s.ids.tolist(), s.first) for s in plan.shares(0, rank, world_size)]
    rest = [(s.step, s.ids.tolist(), s.first) for s in plan.shares(start, rank, world_size)]
    assert len(whole) == plan.num_steps
    assert rest == whole[start:]


@no_deadline
@given(plans)
def test_examples_counts_the_steps_before(plan: BatchPlan) -> None:
    sizes = [len(plan.batch(step)) for step in range(plan.num_steps)]
    assert [plan.examples(step) for step in range(plan.num_steps)] == [
        sum(sizes[:step]) for step in range(plan.num_steps)
    ]


@no_deadline
@given(st.integers(0, 1000), st.integers(1, 40))
def test_ranges_cover_everything_in_order(length: int, count: int) -> None:
    ranges = [split_range(length, index, count) for index in range(count)]
    assert [i for first, end in ranges for i in range(first, end)] == list(range(length))
    assert max(end - first for first, end in ranges) <= -(-length // count)


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


@no_deadline
@given(st.lists(st.integers(0, 2**70) | st.text(), max_size=4))
def test_mix_is_a_seed_that_tells_its_parts_apart(parts: list[int | str]) -> None:
    assert 0 <= mix(*parts) < 2**63
    assert len({mix(*parts), mix(*parts, 0), mix(0, *parts, 1), mix(1, *parts, 0)}) == 4


def test_mix_is_the_same_everywhere() -> None:
    assert mix(0, "order", 0) == 4819849257279361181
    assert len({mix(0, 1), mix(1, 0), mix("0", 1), mix("0, 1"), mix(1), mix(0, 0, 1)}) == 6


@pytest.mark.parametrize(
    ("length", "batch_size", "steps", "epochs", "expected"),
    [
        (70000, 64, None, None, 2 * 1094),
        (1437, 64, None, None, 44 * 23),
        (3, 64, None, None, 1000),
        (60000, 64, 7, None, 7),
        (60000, 64, 7, 3.0, 7),
        (60000, 64, None, 3, 3 * 938),
        (100, 10, None, 0.5, 5),
        (101, 10, None, 1.0, 11),
        (100, 10, None, 1e-9, 1),
    ],
)
def test_count_steps(
    length: int, batch_size: int, steps: int | None, epochs: float | None, expected: int
) -> None:
    assert count_steps(length, batch_size, steps=steps, epochs=epochs) == expected
