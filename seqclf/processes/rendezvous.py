"""Where processes meet when a launcher starts them again.

torchrun and accelerate launch keep one store for all attempts of their workers (torch 2.14:
elastic/rendezvous/dynamic_rendezvous.py makes it once), and its keys do not tell the attempts
apart. So a worker that starts quickly finds the address of a process that died, is refused there,
and fails the new attempt, too. Here the living processes agree on a random name and put it before
all of their keys.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from typing import TypedDict

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

POLL_S = 0.02


class GroupArguments(TypedDict, total=False):
    """Arguments of torch's init_process_group."""

    store: Store
    rank: int
    world_size: int


def meet(timeout: timedelta) -> GroupArguments:
    """Return a store without the keys of earlier attempts, as arguments for init_process_group.

    Return no arguments if torch makes a new store by itself. Collective. Raises RuntimeError if the
    processes do not meet in time.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or world_size == 1:
        return {}
    rank = int(os.environ["RANK"])
    address = os.environ["MASTER_ADDR"]
    port = int(os.environ["MASTER_PORT"])
    shared = TCPStore(address, port, is_master=False, timeout=timeout)
    name = choose_name(shared, rank, world_size, timeout)
    return {"store": PrefixStore(name, shared), "rank": rank, "world_size": world_size}


def choose_name(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Return a name that only the processes which call this now know. Collective.

    Each other rank writes a random id; rank 0 answers it with the name. Rank 0 may answer the id of
    a dead process first, so it goes on until each rank has confirmed this very name.
    """
    own = uuid.uuid4().hex
    if rank > 0:
        store.set(f"seqclf/here/{rank}", own)
        store.wait([f"seqclf/answer/{own}"], timeout)
        name = store.get(f"seqclf/answer/{own}").decode()
        store.set(f"seqclf/heard/{name}/{rank}", "")
        return name
    missing = set(range(1, world_size))
    end = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"seqclf/heard/{own}/{other}"]):
                missing.remove(other)
            elif store.check([f"seqclf/here/{other}"]):
                its_id = store.get(f"seqclf/here/{other}").decode()
                store.set(f"seqclf/answer/{its_id}", own)
        if time.monotonic() > end:
            raise RuntimeError(f"rank {', '.join(map(str, sorted(missing)))} did not come")
        time.sleep(POLL_S if missing else 0)
    return own
