"""The demonstration: a service under the agent, a real OTLP receiver, and the trace that both make.

    make demo

Starts `services/users` (opentelemetry_sdk, an OTLP exporter of its own) under `spanweld run` with no
option, sends a few requests, and prints what the receiver got: each span with who sent it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict

import click

from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.services import READY, Lines, Service, build

REQUESTS = 3
AGENT_SCOPE = "spanweld"
CLIENT_KIND = 3
SPANS_OF_A_REQUEST = 5
USERS = ("ada", "grace", "barbara")


def create_user(address: str, number: int, name: str) -> None:
    """One request, as any client would send it."""
    request = urllib.request.Request(
        f"http://{address}/api/users/{number}",
        data=json.dumps({"name": name}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        click.echo(f"POST /api/users/{number} {name}: {response.status}")


def show(spans: list[ReceivedSpan]) -> bool:
    """Prints every trace as a tree; whether each request's is whole, of spans of both.

    The request to the store goes out from a task of the client's, and may be a trace of its own.
    """
    children: dict[str, list[ReceivedSpan]] = defaultdict(list)
    ids = {span.span_id for span in spans}
    for span in sorted(spans, key=lambda span: span.start_ns):
        children[span.parent_span_id if span.parent_span_id in ids else ""].append(span)
    whole = True
    for root in children[""]:
        click.echo(f"\ntrace {root.trace_id}")
        sent = show_span(root, children, "", "")
        if root.kind != CLIENT_KIND:
            whole = whole and sent >= SPANS_OF_A_REQUEST - 1 and root.scope_name == AGENT_SCOPE
    return whole


def show_span(span: ReceivedSpan, children: dict[str, list[ReceivedSpan]], branch: str, indent: str) -> int:
    """Prints a span and all below it; returns how many they are."""
    automatic = span.scope_name == AGENT_SCOPE
    name = span.name
    status = ""
    if automatic:
        name = f"HTTP {span.name} {span.attributes.get('url.path') or span.attributes['url.full']}"
        status = str(span.attributes.get("http.response.status_code", ""))
    name = f"{branch}{name} ({'auto' if automatic else 'manual'})"
    sender = "spanweld" if automatic else "the service's own exporter"
    click.echo(f"{name:<45}{(span.end_ns - span.start_ns) / 1e6:8.1f} ms  {status:>4}   sent by {sender}")
    below = children[span.span_id]
    number = 1
    for child in below:
        last = child is below[-1]
        number += show_span(
            child, children, indent + ("└── " if last else "├── "), indent + ("    " if last else "│   ")
        )
    return number


def main() -> int:
    """Runs the demonstration; 0 if every trace was joined."""
    click.echo("building the services (minutes, the first time)")
    binaries = build("release")
    with OtlpReceiver() as receiver, Service(binaries / "store") as store:
        command = [sys.executable, "-m", "spanweld", "run", "--"]
        command += [str(binaries / "users"), "--store", store.url]
        click.echo("$ spanweld run -- ./users --store " + store.url)
        environ = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "NO_PROXY": "127.0.0.1",
        }
        agent = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
        assert agent.stdout is not None
        try:
            output = Lines(agent.stdout)
            address = output.wait_for(READY, 60).removeprefix(READY)
            for number, name in enumerate(USERS[:REQUESTS], start=1):
                create_user(address, number, name)
            deadline = time.monotonic() + 15
            receiver.wait_for(
                lambda spans: len(spans) >= REQUESTS * SPANS_OF_A_REQUEST, deadline - time.monotonic()
            )
        finally:
            agent.terminate()
            agent.wait(15)
        joined = show(receiver.spans)
    click.echo("\nall traces are joined" if joined else "\nTHE TRACES ARE NOT JOINED")
    return 0 if joined else 1


if __name__ == "__main__":
    sys.exit(main())
