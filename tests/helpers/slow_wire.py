"""A wire between two network interfaces that delays packets and loses some.

The kernel's netem does that, too, but not every kernel has it. A program of its own, for a network
namespace: `slow_wire.py ONE OTHER DELAY_S LOSS`, or `slow_wire.py INTERFACE` before that, on the
host, so that its packets carry whole checksums, which a wire cannot add.
"""

from __future__ import annotations

import array
import fcntl
import random
import select
import socket
import struct
import sys
import time
from collections import deque

SIOCETHTOOL = 0x8946
ETHTOOL_STXCSUM = 0x17
ALL_PROTOCOLS = 3
PACKET_OUTGOING = 4
LONGEST_FRAME = 65536


def write_whole_checksums(interface: str) -> None:
    """Have the kernel compute the checksums of packets that leave by an interface."""
    command = array.array("I", [ETHTOOL_STXCSUM, 0])
    request = struct.pack("16sP", interface.encode(), command.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


def open_interface(name: str) -> socket.socket:
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    opened.bind((name, 0))
    return opened


def connect(one: str, other: str, delay_s: float, loss: float) -> None:
    """Pass packets on, each way, for ever."""
    ends = [open_interface(one), open_interface(other)]
    others = dict(zip(ends, reversed(ends), strict=True))
    draw = random.Random(0)
    waiting: deque[tuple[float, socket.socket, bytes]] = deque()  # the next to leave first
    while True:
        limit_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], limit_s)[0]:
            frame, (*_, kind, _, _) = end.recvfrom(LONGEST_FRAME)
            if kind != PACKET_OUTGOING and draw.random() >= loss:
                waiting.append((time.monotonic() + delay_s, others[end], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, end, frame = waiting.popleft()
            end.send(frame)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        write_whole_checksums(sys.argv[1])
    else:
        connect(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
