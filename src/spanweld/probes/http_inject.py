"""HTTP inject: requests that the target sends carry the context of their client span.

The programs are attached to a cgroup and to a map of sockets: see ``spanweld.injection``.
"""

from __future__ import annotations

from collections.abc import Mapping

from spanweld.bpf.clock import Clock
from spanweld.bpf.events import INJECT_EVENT, EventKind, InjectEvent, InjectNotice
from spanweld.probes.declaration import (
    Decoded,
    Instrumentation,
    OldConnection,
    Place,
    Probe,
    SocketLetGo,
)


def decode_inject(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:  # noqa: ARG001
    """EVENT_INJECT -> what is to be done, or said."""
    event = InjectEvent._make(INJECT_EVENT.unpack(data))
    if event.notice == InjectNotice.LET_GO:
        return SocketLetGo(event.cookie)
    return OldConnection()


INSTRUMENTATION = Instrumentation(
    name="http_inject",
    probes=(Probe("inject_connect", Place.SOCKETS), Probe("inject_message", Place.SOCKETS)),
    decoders={EventKind.INJECT: decode_inject},
)
