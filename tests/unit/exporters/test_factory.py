"""``make_exporters``: names to exporters."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from spanweld.errors import UsageError
from spanweld.exporters import ExportCounts, Exporter, make_exporters
from spanweld.exporters.console import ConsoleExporter
from spanweld.exporters.jsonfile import JsonFileExporter
from spanweld.exporters.otlp import OtlpExporter
from spanweld.model import Origin
from spanweld.settings import OtlpProtocol, OtlpSettings, Settings
from tests.support.otlp_receiver import OtlpReceiver
from tests.unit.exporters.support import RESOURCE, Messages, server_span, span


def close(exporters: list[Exporter]) -> None:
    for exporter in exporters:
        exporter.close(5.0)


def test_each_name_makes_its_exporter_once(tmp_path: Path, messages: Messages) -> None:
    settings = Settings(exports=("console", "otlp", f"json:{tmp_path / 'a:b.jsonl'}", "console"))
    exporters = make_exporters(settings, io.StringIO(), messages)
    assert [type(exporter) for exporter in exporters] == [ConsoleExporter, OtlpExporter, JsonFileExporter]
    assert (tmp_path / "a:b.jsonl").exists()
    assert [exporter.counts() for exporter in exporters] == [ExportCounts()] * 3
    close(exporters)


@pytest.mark.parametrize("name", ["", "jaeger", "json", "json:", "otlp:x", "Console"])
def test_other_names_are_refused_with_what_to_use(name: str, messages: Messages) -> None:
    with pytest.raises(UsageError, match="--export") as caught:
        make_exporters(Settings(exports=("console", name)), io.StringIO(), messages)
    assert "json:FILE" in caught.value.remedy


def test_both_origins_are_shown_and_only_automatic_ones_leave(
    tmp_path: Path, receiver: OtlpReceiver, messages: Messages
) -> None:
    path = tmp_path / "spans.jsonl"
    terminal = io.StringIO()
    otlp = OtlpSettings(endpoint=receiver.grpc_endpoint, protocol=OtlpProtocol.GRPC)
    settings = replace(Settings(exports=("console", "otlp", f"json:{path}")), otlp=otlp)
    exporters = make_exporters(settings, terminal, messages)
    for exporter in exporters:
        exporter.export(RESOURCE, [span(2, "manual", parent=1, origin=Origin.MANUAL), server_span(1)])
        exporter.poll(1.0)
    close(exporters)
    assert terminal.getvalue().count("\n") == 2
    assert [item.name for item in receiver.spans] == ["POST"]
    assert "manual" not in path.read_text()
    assert [exporter.counts().exported for exporter in exporters] == [2, 1, 1]
    assert messages.said == []
