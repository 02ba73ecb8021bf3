"""Services of an SDK that nobody has seen, with the layout that their machine code shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.agent import run
from tests.support.client import get
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.services import binary
from tests.support.traced import SOON, How, Traced
from tests.support.traces import assert_child, manual_spans
from tests.support.unknown import of_unknown_version

pytestmark = pytest.mark.root

READY = "manual spans of opentelemetry_sdk 0.99.0 are adopted (write stop), layout from the code"
REMOTE_TRACE, REMOTE_SPAN = f"{0xAA:032x}", f"{0xBB:016x}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_unknown_version(binary("lab", "release"), tmp_path_factory.mktemp("unknown") / "lab")


@pytest.fixture(scope="module")
def bare(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without symbols."""
    path = tmp_path_factory.mktemp("bare") / "lab"
    subprocess.run(["strip", "-o", path, lab], check=True)
    return path


def _is_joined(service: Path, how: How) -> None:
    """The first root of all is adopted as any other, and so is a remote parent."""
    with Traced("lab", executable=service, how=how) as traced:
        assert READY in traced.agent.messages.wait_for("ready (pid")
        for _ in range(3):
            seen = traced.see("/nested/{n}", "root", "child", "grandchild")
            assert_child(seen.manual["root"], seen.server)
            assert_child(seen.manual["child"], seen.manual["root"])
            assert_child(seen.manual["grandchild"], seen.manual["child"])
        headers = {"traceparent": f"00-{REMOTE_TRACE}-{REMOTE_SPAN}-01"}
        seen = traced.see("/remote-parent/{n}", "server", "child", headers=headers)
        assert seen.server.parent_span_id == REMOTE_SPAN
        assert seen.server.trace_id == REMOTE_TRACE
        assert_child(seen.manual["server"], seen.server)
        assert_child(seen.manual["child"], seen.manual["server"])


@pytest.mark.parametrize("how", ["run", "attach"])
def test_with_symbols(lab: Path, how: How) -> None:
    _is_joined(lab, how)


def test_without_symbols(bare: Path) -> None:
    """Nobody learns a layout there: the code alone knows it."""
    _is_joined(bare, "attach")


@pytest.mark.parametrize("shows", [True, False])
def test_the_terminal(lab: Path, bare: Path, *, shows: bool) -> None:
    """With symbols all that a tree needs is in the code; without, names and statuses are not known."""
    with OtlpReceiver() as receiver:
        environ = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        options = ("--export", "console", "--write", "stop")
        with run([str(lab if shows else bare)], *options, environ=environ) as agent:
            assert get(agent.service_address, "/status/1").status == 200
            tree = agent.output.wait_for("HTTP GET /status/1")
            receiver.wait_for(lambda spans: manual_spans(spans, 1))
            assert agent.stop() == 0
            lines = [re.sub(r"\s+\d+\.\d ms", "", line) for line in agent.output.join().splitlines()]
    (at,) = (number for number, line in enumerate(lines) if line.startswith("HTTP GET /status/1"))
    assert tree.startswith("HTTP GET /status/1 (auto)")
    assert ("└── root (manual)   error" in lines[at + 1 : at + 2]) == shows, lines
    assert any("(manual)" in line for line in lines) == shows
