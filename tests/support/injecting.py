"""The programs that inject, on any process: in a process of its own, so that it can be killed.

    python -m tests.support.injecting PID...

The agent traces Rust services only. What the kernel does to the bytes of a connection does not depend on
that, and a test that is itself the target decides which system call carries what.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType

from spanweld.agent import load_programs
from spanweld.bpf import events
from spanweld.bpf.clock import Clock
from spanweld.bpf.host import look_at_host
from spanweld.bpf.ring import RingReader
from spanweld.bpf.targets import TargetPlaces
from spanweld.injection import Injection
from spanweld.model import Pid
from spanweld.probes import REGISTRY
from spanweld.probes.declaration import Place, SocketLetGo
from spanweld.probes.http_inject import decode_inject
from spanweld.settings import Settings, WriteMode
from tests.support.services import Lines

SAMPLED = (1 << 63) - 1


class Injecting:
    """While it is entered, requests of these processes get headers."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids

    def __enter__(self) -> Injecting:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.injecting", *map(str, self._pids)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self._lines = Lines(self.process.stdout)
        self._lines.wait_for("ready", 60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends it as nothing could prepare for."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> dict[str, int]:
        """Ends it in order; what was counted, by the counters' names, and ``let_go``, sockets that were."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(30) == 0
        counts: dict[str, int] = json.loads(self._lines.join().splitlines()[-1])
        return counts


def main() -> int:
    """Until standard input is closed."""
    pids = [int(argument) for argument in sys.argv[1:]]
    bpf, _ = load_programs(Settings(write=WriteMode.OFF), look_at_host(mount=True))
    for instrumentation in REGISTRY:
        for probe in instrumentation.probes:
            if probe.place is Place.TRACEPOINT and not probe.for_stop_writer:
                probe.attach_tracepoint(bpf)
    places = TargetPlaces(bpf)
    injection = Injection(bpf, places)
    values = dict.fromkeys(events.Target._fields, 0)
    values.update(inject=1, sample_below=SAMPLED)
    for pid in pids:
        places.reserve(Pid(pid), None)
        places.put(Pid(pid), events.TARGET.pack(*values.values()))
    print("ready", flush=True)
    sys.stdin.read()
    counts = {"let_go": 0}
    ring = bpf.map("events")
    for record in RingReader(ring.fd, ring.max_entries).drain():
        if events.EVENT_HEAD.unpack_from(record)[0] == events.EventKind.INJECT:
            counts["let_go"] += isinstance(decode_inject(record, Clock(), {}), SocketLetGo)
    for counter in events.Counter:
        if counter is not events.Counter.MAX:
            counts[counter.name] = bpf.map("counters").sum(int(counter).to_bytes(4, "little"))
    injection.close()
    print(json.dumps(counts), flush=True)
    return 0


if __name__ == "__main__":
    os.setpgid(0, 0)
    sys.exit(main())
