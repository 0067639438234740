from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqclf.data import batches, orders
from seqclf.data.batches import (
    BatchPlan,
    count_steps,
    evaluation_batches,
    padding_fraction,
    split_range,
)
from seqclf.data.blocks import Blocks
from seqclf.data.orders import MIN_FILL, make_buckets, mix


@pytest.fixture(scope="module", params=["stored", "computed"], autouse=True)
def _order(request: pytest.FixtureRequest) -> Iterator[None]:
    """Test each order twice: as few examples have it, and as very many do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqclf.data.blocks.BLOCKS_OF_A_BUFFER", 5)
        if request.param == "computed":
            patch.setattr(batches, "LARGEST_STORED", 0)
            patch.setattr(orders, "LARGEST_STORED", 0)
            patch.setattr(orders, "PART", 16)
            orders.computed_part.cache_clear()
        yield
        orders.computed_part.cache_clear()


no_deadline = settings(deadline=None)
plans = st.builds(
    BatchPlan,
    length=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 2**40),
    num_steps=st.integers(1, 30),
)


@st.composite
def bucketed(draw: st.DrawFn) -> tuple[BatchPlan, Tensor]:
    """Draw a plan with buckets, and the lengths that it was made of."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 40), min_size=1, max_size=80)))
    batch_size = draw(st.integers(1, 20))
    max_steps = draw(st.none() | st.integers(int(lengths.max()), 400))
    buckets = make_buckets(lengths, batch_size, max_steps)
    plan = BatchPlan(len(lengths), batch_size, draw(st.integers(0, 2**40)), 30, buckets)
    return plan, lengths


@st.composite
def buffered(draw: st.DrawFn) -> tuple[BatchPlan, Tensor]:
    """Draw a plan whose batches are cut from buffers of blocks, and the lengths of all examples."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 40), min_size=1, max_size=80)))
    batch_size, seed = draw(st.integers(1, 20)), draw(st.integers(0, 2**40))
    buffer = batch_size * draw(st.integers(1, 8))
    similar = lengths if draw(st.booleans()) else None
    blocks = Blocks(len(lengths), batch_size, seed, buffer, similar)
    return BatchPlan(len(lengths), batch_size, seed, 30, blocks=blocks), lengths


any_plan = plans | (bucketed() | buffered()).map(lambda drawn: drawn[0])


@no_deadline
@given(plans | buffered().map(lambda drawn: drawn[0]), st.integers(0, 3))
def test_an_epoch_holds_every_example_once(plan: BatchPlan, epoch: int) -> None:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    batches = [plan.batch(step) for step in steps]
    assert torch.cat(batches).sort().values.tolist() == list(range(plan.length))
    sizes = [len(batch) for batch in batches]
    if plan.blocks is not None:  # the short batch is anywhere in the last buffer
        sizes.sort(reverse=True)
    assert all(size == plan.batch_size for size in sizes[:-1])


@no_deadline
@given(any_plan, st.integers(0, 29), st.integers(1, 9))
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
@given(any_plan, st.data(), st.integers(1, 4))
def test_a_plan_starts_anywhere(plan: BatchPlan, data: st.DataObject, world_size: int) -> None:
    start = data.draw(st.integers(0, plan.num_steps))
    rank = data.draw(st.integers(0, world_size - 1))
    whole = [(s.step, s.ids.tolist(), s.first) for s in plan.shares(0, rank, world_size)]
    rest = [(s.step, s.ids.tolist(), s.first) for s in plan.shares(start, rank, world_size)]
    assert len(whole) == plan.num_steps
    assert rest == whole[start:]


@no_deadline
@given(any_plan)
def test_examples_counts_the_steps_before(plan: BatchPlan) -> None:
    sizes = [len(plan.batch(step)) for step in range(plan.num_steps)]
    assert [plan.examples(step) for step in range(plan.num_steps)] == [
        sum(sizes[:step]) for step in range(plan.num_steps)
    ]


@no_deadline
@given(bucketed(), st.integers(0, 3), st.integers(1, 400))
def test_a_bucketed_epoch_holds_every_example_once_beside_similar_ones(
    drawn: tuple[BatchPlan, Tensor], epoch: int, max_steps: int
) -> None:
    plan, lengths = drawn
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    batches = [plan.batch(step) for step in steps]
    assert torch.cat(batches).sort().values.tolist() == list(range(plan.length))
    again = BatchPlan(plan.length, plan.batch_size, plan.seed + 1, 30, plan.buckets)
    sizes = [sorted(len(p.batch(s)) for s in range(plan.steps_per_epoch)) for p in (plan, again)]
    assert sizes[0] == sizes[1] == sorted(map(len, batches))  # a matter of the lengths alone
    assert all(1 <= len(batch) <= plan.batch_size for batch in batches)
    assert plan.buckets is not None
    for number in plan.buckets.bucket_numbers.unique():
        members = plan.buckets.positions[plan.buckets.bucket_numbers == number]
        inside = [batch for batch in batches if batch[0] in members]
        assert torch.cat(inside).sort().values.tolist() == members.sort().values.tolist()
        if len(inside) > 1:
            longest = int(lengths[members].max())
            full = [batch for batch in inside if len(batch) == max(map(len, inside))]
            assert all(int(lengths[batch].min()) >= MIN_FILL * longest for batch in full) or (
                len(inside) == 2 and len(full) == 1
            )


@no_deadline
@given(buffered(), st.integers(0, 2))
def test_a_buffer_is_read_in_few_pieces_and_then_never_again(
    drawn: tuple[BatchPlan, Tensor], epoch: int
) -> None:
    plan, lengths = drawn
    assert plan.blocks is not None
    blocks, count = plan.blocks, plan.blocks.per_epoch
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    found: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        ids = plan.batch(step).tolist()
        found.setdefault(blocks.buffer_of(epoch, index), []).extend(ids)
    assert list(found) == list(range(epoch * count, (epoch + 1) * count))
    for number, ids in found.items():
        ranges = blocks.ranges(number)
        assert sorted(ids) == sorted(i for first, end in ranges for i in range(first, end))
        # One more where a block began in the buffer before, at the end of the data, or short.
        assert len(ranges) <= -(-len(ids) // blocks.size) + 3
    if blocks.lengths is not None:
        for ids in found.values():
            inside = [
                batch for step in steps if set(batch := plan.batch(step).tolist()) <= set(ids)
            ]
            padded = sum(len(batch) * int(lengths[batch].max()) for batch in inside)
            longest_first = sorted(lengths[ids].tolist(), reverse=True)
            least = sum(
                len(longest_first[i : i + plan.batch_size]) * longest_first[i]
                for i in range(0, len(ids), plan.batch_size)
            )
            # Shuffled within a bucket, a batch may hold the longest of its bucket.
            assert padded <= least / MIN_FILL + plan.batch_size * max(longest_first)


def test_blocks_mix_epochs_and_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seqclf.data.blocks.BLOCKS_OF_A_BUFFER", 100)
    blocks = Blocks(10_000, 10, seed=0, buffer=1000)
    plan = BatchPlan(10_000, 10, 0, 2000, blocks=blocks)
    epochs = [torch.cat([plan.batch(step) for step in range(n, n + 1000)]) for n in (0, 1000)]
    assert (epochs[0] == epochs[1]).float().mean() < 0.01
    for order in epochs:
        # A buffer has examples from all over the data, and an example stands in any buffer.
        tenths = torch.stack([part // 1000 for part in order.split(1000)])
        counts = torch.stack([row.bincount(minlength=10) for row in tenths])
        assert int(counts.min()) > 10
        correlation = torch.corrcoef(torch.stack([order, torch.arange(10_000)]).double())[0, 1]
        assert abs(float(correlation)) < 0.1
        # A batch has examples of many blocks of ten.
        assert min(len((batch // 10).unique()) for batch in order.split(10)) > 4
    # Each buffer has a shuffle of its own, and each epoch's blocks begin elsewhere.
    shuffles, remainders = set(), set()
    for epoch, number in ((0, 0), (0, 1), (1, 0), (1, 1)):
        members = blocks.members(epoch, number)
        shuffled = epochs[epoch].split(1000)[number]
        assert 95 < len(blocks.ranges(epoch * 10 + number)) <= 102  # of ten, some side by side
        shuffles.add(tuple(members.argsort()[shuffled.argsort().argsort()].tolist()))
        remainders.add((epoch, int(members[0]) % 10))
    assert len(shuffles) == 4
    assert len(remainders) == len({remainder for _, remainder in remainders}) == 2


def test_batches_of_like_length_of_a_buffer_come_in_any_order() -> None:
    lengths = torch.arange(1000) % 97 + 1
    blocks = Blocks(1000, 10, seed=0, buffer=500, lengths=lengths)
    orders = []
    for epoch, number in ((0, 0), (0, 1), (1, 0)):
        ids = [blocks.batch(epoch, 50 * number + index) for index in range(50)]
        means = torch.tensor([float(lengths[batch].double().mean()) for batch in ids])
        orders.append(tuple(means.argsort().tolist()))
        assert abs(float(torch.corrcoef(torch.stack([means, torch.arange(50.0)]))[0, 1])) < 0.5
    assert len(set(orders)) == 3


@no_deadline
@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(1, 20), st.data())
def test_a_budget_bounds_the_steps_of_every_batch(
    some: list[int], batch_size: int, data: st.DataObject
) -> None:
    lengths = torch.tensor(some)
    max_steps = data.draw(st.integers(1, 200))
    if max_steps < max(some):
        with pytest.raises(ValueError, match=f"{max(some)} steps, more than {max_steps}"):
            make_buckets(lengths, batch_size, max_steps)
        return
    buckets = make_buckets(lengths, batch_size, max_steps)
    plan = BatchPlan(len(some), batch_size, 1, 1, buckets)
    batches = [plan.batch(step) for step in range(3 * plan.steps_per_epoch)]
    assert all(len(batch) * int(lengths[batch].max()) <= max_steps for batch in batches)


def test_buckets_of_skewed_lengths_have_little_padding_and_mix() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(5000, generator=generator).mul(0.8).add(3).exp().ceil().to(torch.int64)
    plan = BatchPlan(5000, 32, 0, 1, make_buckets(lengths, 32))
    assert (
        padding_fraction(lengths, plan) < 0.1 < padding_fraction(lengths, BatchPlan(5000, 32, 0, 1))
    )
    assert plan.steps_per_epoch == BatchPlan(5000, 32, 0, 1).steps_per_epoch
    batches = [frozenset(plan.batch(s).tolist()) for s in range(2 * plan.steps_per_epoch)]
    first, second = batches[: plan.steps_per_epoch], batches[plan.steps_per_epoch :]
    assert len(set(first) & set(second)) < 0.2 * len(first)
    means = [float(lengths[plan.batch(s)].float().mean()) for s in range(plan.steps_per_epoch)]
    assert means != sorted(means, reverse=True)


@no_deadline
@given(
    st.none() | st.lists(st.integers(1, 2**17), min_size=30, max_size=30),
    st.integers(0, 30),
    st.data(),
)
def test_an_evaluation_sees_every_example_once(
    some: list[int] | None, first: int, data: st.DataObject
) -> None:
    end = data.draw(st.integers(first, 30))
    size = data.draw(st.integers(1, 40))
    lengths = torch.tensor(some) if some else None
    batches = [torch.arange(30)[ids] for ids in evaluation_batches(lengths, first, end, size)]
    seen = torch.cat(batches).tolist() if batches else []
    assert sorted(seen) == list(range(first, end))
    assert all(1 <= len(batch) <= size for batch in batches)
    if lengths is not None:
        steps = [len(batch) * int(lengths[batch].max()) for batch in batches if len(batch) > 1]
        assert all(count <= 2**18 for count in steps)


@no_deadline
@given(st.integers(0, 1000), st.integers(1, 40))
def test_ranges_cover_everything_in_order(length: int, count: int) -> None:
    ranges = [split_range(length, index, count) for index in range(count)]
    assert [i for first, end in ranges for i in range(first, end)] == list(range(length))
    assert max(end - first for first, end in ranges) <= -(-length // count)


def test_orders_differ_between_epochs_and_seeds() -> None:
    plans = [BatchPlan(50, 50, seed, 2) for seed in (0, 1)]
    orders = {tuple(plan.batch(epoch).tolist()) for plan in plans for epoch in (0, 1)}
    assert len(orders) == 4


def test_the_orders_are_the_same_in_every_version() -> None:
    lengths = torch.tensor([5, 1, 9, 9, 3, 7, 7, 2, 8, 6])
    plain = BatchPlan(10, 4, seed=3, num_steps=9)
    bucketed = BatchPlan(10, 4, seed=3, num_steps=9, buckets=make_buckets(lengths, 4))
    expected = {
        "stored": [[4, 9, 1, 8], [4, 0, 6, 9]],
        "computed": [[4, 7, 2, 5], [9, 0, 6, 4]],
    }
    found = [plan.batch(4).tolist() for plan in (plain, bucketed)]
    assert found == expected[plain.order]
    lengths = torch.arange(42) % 7 + 1
    blocks = [Blocks(42, 4, seed=3, buffer=20, lengths=some) for some in (None, lengths)]
    expected = {
        "stored": [[23, 17, 5, 15], [20, 5, 6, 13]],
        "computed": [[35, 1, 9, 19], [27, 33, 20, 34]],
    }
    assert [some.batch(1, 6).tolist() for some in blocks] == expected[plain.order]


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
    plan = BatchPlan(length, batch_size, 0, 0)
    assert count_steps(plan.steps_per_epoch, steps=steps, epochs=epochs) == expected
