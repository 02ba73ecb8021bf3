"""Where automatic spans go: OTLP by gRPC and by HTTP, a file, the console. Manual spans go out once."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent import AgentProcess, run
from tests.support.client import Connection, get
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.services import Service, binary
from tests.support.traced import SOON, Traced
from tests.support.traces import assert_child, is_automatic, manual_spans, server_spans, wrong

pytestmark = [pytest.mark.root]

REMOTE_TRACE = "0af7651916cd43dd8448eb211c80319c"
REMOTE = {"traceparent": f"00-{REMOTE_TRACE}-b7ad6b7169203331-01"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_otlp(protocol: str) -> None:
    """Both exporters speak the same protocol to the same receiver; no span comes twice."""
    grpc = protocol == "grpc"
    with Traced("lab", *(["--otlp-protocol", "grpc"] if grpc else []), grpc=grpc) as lab:
        with Connection(lab.address) as connection:
            for _ in range(5):
                seen = lab.see("/nested/{n}", "root", "child", "grandchild", connection=connection)
                assert_child(seen.manual["root"], seen.server)
                assert_child(seen.manual["child"], seen.manual["root"])
            seen = lab.see("/roots/{n}", "a", "b", "c", headers=REMOTE, connection=connection)
        for root in seen.manual.values():
            assert_child(root, seen.server)
        lab.finish()
        assert {span.protocol for span in lab.spans} == {protocol}
        # No request for the service was the export of spans, and no automatic span is a manual one.
        automatic = [span for span in lab.spans if is_automatic(span)]
        assert len(automatic) == 6
        assert {span.name for span in automatic} == {"GET"}
        resource = automatic[0].resource
        assert resource["service.name"] == "lab"
        assert resource["process.pid"] == lab.pid
        assert resource["telemetry.distro.name"] == "spanweld"


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def spans_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**span, "scope": scope["scope"]["name"]}
        for line in lines
        for resource in line["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def test_a_file_and_otlp_at_once(tmp_path: Path) -> None:
    """What is in the file is what the receiver got from the agent."""
    file = tmp_path / "spans.jsonl"
    with Traced("lab", options=("--write", "stop", "--export", f"json:{file}")) as lab:
        seen = [
            lab.see("/roots/{n}", "a", "b", "c"),
            lab.see("/nested/{n}", "root", "child", "grandchild", headers=REMOTE),
            lab.see("/panic/{n}", "root", status=500),
        ]
        lab.finish()
    written = {span["spanId"]: span for span in spans_of(lines_of(file))}
    assert len(written) == len(seen)
    for one in seen:
        span = written[one.server.span_id]
        assert span["traceId"] == one.server.trace_id
        assert span.get("parentSpanId", "") == one.server.parent_span_id
        assert (span["name"], span["kind"], span["scope"]) == ("GET", 2, "spanweld")
        assert (int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])) == (
            one.server.start_ns,
            one.server.end_ns,
        )
        attributes = {pair["key"]: pair["value"] for pair in span["attributes"]}
        assert attributes["url.path"]["stringValue"] == one.server.attributes["url.path"]
        for root in one.manual.values():
            assert root.trace_id == span["traceId"]
    assert written[seen[2].server.span_id]["status"]["code"] == 2


def test_links_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    with Traced("lab", options=("--write", "off", "--export", f"json:{file}")) as lab:
        seen = lab.see("/roots/{n}", "a", "b", "c")
        lab.finish()
    (span,) = spans_of(lines_of(file))
    assert [(link["traceId"], link["spanId"]) for link in span["links"]] == [
        (seen.manual[name].trace_id, seen.manual[name].span_id) for name in ("a", "b", "c")
    ]


# The console


def tree(agent: AgentProcess, first: str, lines: int, timeout: float = 20.0) -> list[str]:
    """A tree from the agent's standard output, each line's label and what follows its duration."""
    deadline = time.monotonic() + timeout
    while True:
        text = agent.output.text.splitlines()
        for at, line in enumerate(text):
            if line.startswith(first) and len(text) >= at + lines:
                return [re.sub(r"\s+\d+\.\d ms", " |", line).rstrip() for line in text[at : at + lines]]
        assert time.monotonic() < deadline, agent.output.text
        time.sleep(0.02)


def test_the_console_shows_both_in_one_tree() -> None:
    with OtlpReceiver() as receiver:
        environ = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        command = [str(binary("lab", "release"))]
        options = ("--export", "console", "--export", "otlp", "--write", "stop")
        with run(command, *options, environ=environ) as agent:
            address = agent.service_address
            assert get(address, "/nested/1").status == 200
            assert tree(agent, "HTTP GET /nested/1", 4) == [
                "HTTP GET /nested/1 (auto) |   200",
                "└── root (manual) |",
                "    └── child (manual) |",
                "        └── grandchild (manual) |",
            ]
            assert get(address, "/open-roots/2").status == 200
            assert tree(agent, "HTTP GET /open-roots/2", 4) == [
                "HTTP GET /open-roots/2 (auto) |   200",
                "└── a (manual) |",
                "    ├── b (manual) |",
                "    └── c (manual) |",
            ]
            assert get(address, "/status/3").status == 200
            assert tree(agent, "HTTP GET /status/3", 2) == [
                "HTTP GET /status/3 (auto) |   200",
                "└── root (manual) |   error",
            ]
            assert get(address, "/panic/4").status == 500
            assert tree(agent, "HTTP GET /panic/4", 2) == [
                "HTTP GET /panic/4 (auto) |   500",
                "└── root (manual) |",
            ]
            assert get(address, "/none/5", REMOTE).status == 200
            (line,) = tree(agent, "HTTP GET /none/5", 1)
            assert line == f"HTTP GET /none/5 (auto) |   200   continues trace {REMOTE_TRACE}"
            # By a thread that the handler starts.
            assert get(address, "/sync-blocking/6").status == 200
            assert tree(agent, "HTTP GET /sync-blocking/6", 2) == [
                "HTTP GET /sync-blocking/6 (auto) |   200",
                "└── root (manual) |",
            ]
            # A tree of its own for what belongs to no request.
            assert tree(agent, "background (manual)", 1)[0] == "background (manual) |"
            assert agent.stop() == 0
        # What the tree shows is what was exported, and manual spans were exported by the service only.
        spans = receiver.spans
        assert not wrong(spans)
        for number, names in ((1, 3), (2, 3), (3, 1), (4, 1), (6, 1)):
            assert len(manual_spans(spans, number)) == names
        (server,) = server_spans(spans, "/nested/1")
        manual = {span.name: span for span in manual_spans(spans, 1)}
        assert_child(manual["root"], server)
        assert_child(manual["child"], manual["root"])
        assert_child(manual["grandchild"], manual["child"])
        assert all(span.name == "GET" for span in spans if is_automatic(span))


def test_the_console_of_the_demonstration() -> None:
    """The tree of the README; without any option, the console is the only export."""
    with OtlpReceiver() as receiver, Service(binary("store", "release")) as store:
        # The service knows its endpoint, the agent is told of none: attached, from another environment.
        environ = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        with Service(binary("users", "release"), ["--store", store.url], environ) as users:
            with AgentProcess(["attach", "--pid", str(users.pid)]) as agent:
                with Connection(users.address) as connection:
                    assert connection.request("POST", "/api/users/1", body=b"{}").status == 201
                    assert connection.request("POST", "/api/users/2", body=b"{").status == 400
                assert tree(agent, "HTTP POST /api/users/1", 4) == [
                    "HTTP POST /api/users/1 (auto) |   201",
                    "└── process_business_logic (manual) |",
                    "    ├── validate_input (manual) |",
                    "    └── save_to_database (manual) |",
                ]
                assert tree(agent, "HTTP POST /api/users/2", 3) == [
                    "HTTP POST /api/users/2 (auto) |   400",
                    "└── process_business_logic (manual) |   error",
                    "    └── validate_input (manual) |   error",
                ]
                assert agent.stop() == 0
            assert users.stop() == 0
        # The agent sent nothing; the service's own spans are joined all the same.
        spans = receiver.spans
        assert len(spans) == 5
        assert not any(is_automatic(span) for span in spans)
        for number in (1, 2):
            manual = {span.name: span for span in manual_spans(spans, number)}
            root = manual.pop("process_business_logic")
            assert root.parent_span_id
            for child in manual.values():
                assert_child(child, root)
