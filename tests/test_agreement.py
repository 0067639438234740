"""What a process that fails tells of the others: who was first, and who does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import Store

from seqclf.processes.agreement import ALIVE, FAILURE, HOST, NO_ANSWER, Agreement, first_failure

MAIN: Any = SimpleNamespace(
    rank=0, world_size=3, is_main=True, signals=SimpleNamespace(give_way=lambda: None)
)


@pytest.fixture
def store() -> Iterator[Store]:
    """Keep the store of three processes, of which rank 2 waits in a collective."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    waiting = Agreement(timedelta(seconds=60), rank=2)
    yield dist.distributed_c10d._get_default_store()
    waiting.close()
    dist.destroy_process_group()


def test_a_rank_that_does_not_answer_is_lost_and_one_that_waits_is_not(store: Store) -> None:
    store.set(f"{HOST}/1", "there")
    assert first_failure(MAIN, "boom") == f"lost: rank 1 on there: {NO_ANSWER}boom"


def test_the_first_failure_is_told(store: Store) -> None:
    store.set(f"{ALIVE}/1", "")
    store.set(FAILURE, "rank 1: bang")
    assert first_failure(MAIN, "a connection was closed") == "rank 1: bang"
    assert first_failure(MAIN, "bang") == "bang"  # all have made the same mistake


def test_where_the_store_is_gone_its_keeper_is_lost_but_a_mistake_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("seqclf.processes.agreement._ask", lambda *_: None)
    lost = f"lost: rank 0, which keeps the store: {NO_ANSWER}rank 0: boom"
    assert first_failure(MAIN, "boom") == lost
    assert first_failure(MAIN, "boom", mendable=True) == "boom"
