"""Processes that are started again meet each other, not what the dead have left."""

import random
import threading
import time
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from seqclf.processes.rendezvous import choose_name, meet

SOON = timedelta(seconds=20)


def client(served: TCPStore) -> TCPStore:
    """Return a process's own connection: one that waits keeps everyone else on it waiting."""
    return TCPStore("127.0.0.1", served.port, is_master=False, timeout=SOON)


def attempt(served: TCPStore, world_size: int, draw: random.Random) -> set[str]:
    """Return the names that the processes of an attempt chose, each coming at a time of its own."""
    names = []

    def come(rank: int, delay: float) -> None:
        time.sleep(delay)
        names.append(choose_name(client(served), rank, world_size, SOON))

    ranks = [
        threading.Thread(target=come, args=(rank, draw.choice([0, 0.05, 0.2])), daemon=True)
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(30)
    assert len(names) == world_size
    return set(names)


@pytest.mark.parametrize("seed", range(4))
def test_every_attempt_has_a_name_of_its_own(seed: int) -> None:
    draw, store = random.Random(seed), TCPStore("127.0.0.1", 0, is_master=True)
    chosen = [attempt(store, 3, draw) for _ in range(4)]
    assert all(len(names) == 1 for names in chosen)
    assert len(set.union(*chosen)) == 4


def test_one_that_died_before_it_was_heard_is_not_in_the_way() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True)
    store.set("seqclf/here/1", "a dead one")  # it told its name, and died
    assert len(attempt(store, 3, random.Random(0))) == 1


def test_who_does_not_come_is_named() -> None:
    store = HashStore()
    store.set("seqclf/here/1", "a dead one")
    with pytest.raises(RuntimeError, match="rank 1, 2 did not come"):
        choose_name(store, 0, 3, timedelta(seconds=0.2))
    with pytest.raises(RuntimeError):
        choose_name(store, 1, 3, timedelta(seconds=0.2))


def test_two_processes_share_a_store_without_what_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    assert meet(SOON) == {}
    served = TCPStore("127.0.0.1", 0, is_master=True)
    served.set("left", "by a dead one")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_PORT", served.port)):
        monkeypatch.setenv(name, str(value))
    names = []
    other = threading.Thread(target=lambda: names.append(choose_name(client(served), 1, 2, SOON)))
    other.start()
    found = meet(SOON)
    other.join(30)
    assert (found["rank"], found["world_size"]) == (0, 2)
    assert not found["store"].check(["left"])
    PrefixStore(names[0], client(served)).set("key", "value")
    assert found["store"].get("key") == b"value"
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert meet(SOON) == {}
