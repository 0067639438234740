"""Where processes meet when a launcher starts them again.

torchrun and accelerate launch keep one store for all attempts of their workers (torch 2.14:
elastic/rendezvous/dynamic_rendezvous.py makes it once), and nothing in it says of which attempt a
key is. So a worker that is quick finds the address at which a dead one listened, is refused there,
and the restart is used up. Here the living choose a name, and keep their keys under it.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

POLL_S = 0.02


def meet(timeout: timedelta) -> dict[str, Any]:
    """Return what to tell torch's init_process_group: a store without anything of earlier attempts.

    Nothing, if torch makes a new one by itself. Collective. Raises RuntimeError if the processes do
    not meet in time.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or world_size == 1:
        return {}
    rank = int(os.environ["RANK"])
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    served = TCPStore(address, port, is_master=False, timeout=timeout)
    store = PrefixStore(choose_name(served, rank, world_size, timeout), served)
    return {"store": store, "rank": rank, "world_size": world_size}


def choose_name(store: Store, rank: int, world_size: int, timeout: timedelta) -> str:
    """Return a name that only the processes which call this now know. Collective.

    Each tells its own; the first process answers to what it finds, also to the dead, until each of
    the others has said that it heard.
    """
    mine = uuid.uuid4().hex
    if rank > 0:
        store.set(f"seqclf/here/{rank}", mine)
        store.wait([f"seqclf/answer/{mine}"], timeout)
        name = store.get(f"seqclf/answer/{mine}").decode()
        store.set(f"seqclf/heard/{name}/{rank}", "")
        return name
    missing = set(range(1, world_size))
    end = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"seqclf/heard/{mine}/{other}"]):
                missing.remove(other)
            elif store.check([f"seqclf/here/{other}"]):
                theirs = store.get(f"seqclf/here/{other}").decode()
                store.set(f"seqclf/answer/{theirs}", mine)
        if time.monotonic() > end:
            raise RuntimeError(f"rank {', '.join(map(str, sorted(missing)))} did not come")
        time.sleep(POLL_S if missing else 0)
    return mine
