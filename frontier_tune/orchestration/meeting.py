"""Where learners of several nodes meet: a key-value store of torch's on the first one's node, on the cluster's address alone.

``torch.distributed.TCPStore`` would listen on every interface, and is given a socket that listens on the node's address in the
cluster instead. It asks nobody who he is, and neither do gloo and NCCL: whoever reaches that address can read and change what
learners exchange.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from frontier_tune.contracts import BadInput

if TYPE_CHECKING:
    from torch.distributed import Store

_INTERFACE = "NCCL_SOCKET_IFNAME"


@dataclass(frozen=True)
class Meeting:
    """``host`` and ``port`` of the store."""

    host: str
    port: int

    def store(self, seconds: float = 600.0) -> Store:
        """A connection to it. Waits up to ``seconds`` for it, and later for each key."""
        from torch import distributed as dist

        return dist.TCPStore(self.host, self.port, None, False, timedelta(seconds=seconds), wait_for_workers=False)


def open_at(address: str, seconds: float = 600.0) -> tuple[Meeting, Any]:
    """A store that listens on ``address`` of this machine alone, on a free port; it ends with the second thing returned."""
    from torch import distributed as dist

    listening = socket.create_server((address, 0))
    port = int(listening.getsockname()[1])
    server = dist.TCPStore(
        address, port, None, True, timedelta(seconds=seconds), wait_for_workers=False, master_listen_fd=listening.detach()
    )
    return Meeting(address, port), server


def stay_on(address: str) -> None:
    """Let NCCL, in this process, listen on the interface that has ``address`` alone; whoever has chosen one keeps it.

    Raises BadInput where none has it (a node that others know by a translated address): NCCL would listen on any.
    """
    import psutil

    if os.environ.get(_INTERFACE):
        return
    found = psutil.net_if_addrs()
    names = [name for name, its in found.items() if any(a.address == address for a in its)]
    if not names:
        raise BadInput(
            f"placement.learners: {socket.gethostname()} is {address} in the cluster, and none of its interfaces "
            f"({', '.join(sorted(found))}) has that address, so NCCL would listen on any; start the node with the address of one "
            f"(ray start --node-ip-address), or name it in {_INTERFACE} there"
        )
    os.environ[_INTERFACE] = f"={names[0]}"
