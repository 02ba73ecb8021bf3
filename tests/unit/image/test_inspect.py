"""The report of ``inspect``, and the command itself."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from spanweld.commands.inspect import JSON_SCHEMA, Verdict, inspect, make_report, to_json
from spanweld.errors import ImageError
from tests.support.unknown import of_unknown_version
from tests.unit.image.samples import FAKE_OLD_TOKIO, PLAIN, USES_TOKIO, RustBuilder, ServiceBuilder


def _verdict(path: Path) -> tuple[Verdict, str]:
    report = make_report(path)
    return report.verdict, report.verdict_reason


def test_verdicts(
    rust: RustBuilder, service: ServiceBuilder, go_program: Path, c_program: Path, tmp_path: Path
) -> None:
    lab = service("lab", "release")
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", str(stripped), str(lab)], check=True)
    assert _verdict(lab) == (Verdict.JOINED, "by tokio task")
    assert _verdict(stripped) == (Verdict.JOINED, "by tokio task")
    assert _verdict(rust(PLAIN, "-O"))[0] is Verdict.AUTOMATIC_ONLY
    assert _verdict(go_program) == (Verdict.NOTHING, "a Go program")
    assert _verdict(c_program)[0] is Verdict.NOTHING


def test_an_sdk_version_that_is_not_known(
    service: ServiceBuilder, schema: dict[str, Any], tmp_path: Path
) -> None:
    path = of_unknown_version(service("lab", "release"), tmp_path / "service")
    plan = make_report(path).plan
    assert plan.adopted_layout is not None
    assert _verdict(path) == (Verdict.JOINED, "by tokio task")
    document = json.loads(json.dumps(to_json(make_report(path))))
    Draft202012Validator(schema).validate(document)
    layout = document["layout"]
    assert (layout["source"], layout["sdk"]) == ("code", "0.99.0")
    assert layout["read_from"]["span_parent_id"] == ["build_recording_span"]
    assert layout["status_description_pointer"] is None
    assert set(layout) == set(schema["$defs"]["layout"]["properties"])
    printed = CliRunner().invoke(inspect, [str(path)]).output
    assert "from the code, certain: what 7 of the SDK's functions do" in printed
    assert "  ensure_ended_and_exported, is_recording: span_data 0xa8, span_data_size 0x8" in printed


def test_a_layout_that_is_learned(service: ServiceBuilder, tmp_path: Path) -> None:
    path = of_unknown_version(service("lab", "release"), tmp_path / "service", tells=False)
    plan = make_report(path).plan
    assert "opentelemetry_sdk 0.99.0 on x86_64 is not in the layout database" in str(plan.layout)
    assert "its code does not tell: no places of build_with_context" in str(plan.layout)
    assert plan.learns
    assert {point.probe.program for point in plan.points} > {"otel_build_with_context_returns"}
    assert plan.adopted_layout is None
    assert _verdict(path) == (Verdict.JOINED, "by tokio task, once the layout is learned")
    result = CliRunner().invoke(inspect, [str(path)])
    assert "to be learned in the process: opentelemetry_sdk 0.99.0 on" in result.output


def test_what_is_not_learned_without_symbols(service: ServiceBuilder, tmp_path: Path) -> None:
    path = of_unknown_version(service("lab", "release"), tmp_path / "unknown", tells=False)
    stripped = tmp_path / "service"
    subprocess.run(["strip", "-o", stripped, path], check=True)
    verdict, reason = _verdict(stripped)
    assert verdict is Verdict.AUTOMATIC_ONLY
    assert "not in the layout database" in reason
    assert "not learned without symbols" in reason


def test_json(service: ServiceBuilder) -> None:
    path = service("users", "release")
    result = CliRunner().invoke(inspect, [str(path), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    assert document["schema"] == 1
    assert document["language"] == "Rust"
    assert document["sdk"] == {"versions": ["0.31.0"], "found_by": ["symbols", "crate versions"]}
    assert document["tokio"]["task_id"]["offset_from_fs"] < 0
    assert document["layout"]["context_trace_id"] == 0x20
    assert document["layout"]["span_data_none"] == "0x8000000000000000"
    assert document["layout_reason"] is None
    assert document["verdict"]["spans"] == "joined"
    content = path.read_bytes()
    # A `push` of some register, in one byte or two, or `sub rsp`; a `ret`; a `je`.
    bytes_at = {"entry": {0x41, 0x48, *range(0x50, 0x58)}, "returns": {0xC3}, "new task": {0x74}}
    for probe in document["probes"]:
        assert probe["reason"] is None
        assert bool(probe["attach_points"]) == (probe["symbol"] is not None)
        for point in probe["attach_points"]:
            assert content[point["file_offset"]] in bytes_at[probe["place"]]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        resources.files("spanweld.commands").joinpath("inspect.schema.json").read_text("utf-8")
    )
    Draft202012Validator.check_schema(document)
    return document


@pytest.mark.parametrize("name", ["users", "sockets", "minimal", "plain", "old tokio", "go", "c", "stripped"])
def test_the_schema_describes_all_there_is(
    schema: dict[str, Any],
    name: str,
    rust: RustBuilder,
    request: pytest.FixtureRequest,
) -> None:
    if name == "plain":
        path = rust(PLAIN, "-O")
    elif name == "old tokio":
        path = rust(USES_TOKIO, "-O", libraries={"tokio": FAKE_OLD_TOKIO})
    elif name in ("go", "c", "stripped"):
        path = request.getfixturevalue({"go": "go_program", "c": "c_program"}.get(name, name))
    else:
        path = request.getfixturevalue("service")(name, "release")
    document = json.loads(json.dumps(to_json(make_report(path))))
    Draft202012Validator(schema).validate(document)
    assert set(document) == set(schema["properties"])
    task_id = document["tokio"]["task_id"]
    assert (task_id is not None and task_id["tag_offset_from_fs"] is not None) == (name == "old tokio")
    layout = document["layout"]
    assert layout is None or set(layout) == set(schema["$defs"]["layout"]["properties"])
    for probe in document["probes"]:
        assert set(probe) == set(schema["$defs"]["probe"]["properties"])


def test_the_schema_has_the_number_of_the_document(schema: dict[str, Any]) -> None:
    assert schema["properties"]["schema"] == {"const": JSON_SCHEMA}


def test_without_symbols_it_says_what_was_found_by_code(service: ServiceBuilder, tmp_path: Path) -> None:
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", str(stripped), str(service("users", "release"))], check=True)
    document = json.loads(CliRunner().invoke(inspect, [str(stripped), "--json"]).output)
    assert document["symbols"] is False
    assert document["sdk"] == {"versions": ["0.31.0"], "found_by": ["code", "crate versions"]}
    points = [point for probe in document["probes"] for point in probe["attach_points"]]
    assert points
    assert {point["found_by"] for point in points} == {"code"}
    text = CliRunner().invoke(inspect, [str(stripped)]).output
    assert "by its code" in text
    assert "found by code and crate versions" in text


def test_text_is_plain_when_not_on_a_terminal(service: ServiceBuilder) -> None:
    result = CliRunner().invoke(inspect, [str(service("users", "release"))])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "verdict   automatic and manual spans, joined (by tokio task)" in result.output
    assert "entry at 0x" in result.output


def test_a_name_with_control_characters_is_shown_harmlessly(go_program: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil\x1b[31m\udcff"
    path.write_bytes(go_program.read_bytes())
    for flags in ([], ["--json"]):
        result = CliRunner().invoke(inspect, [str(path), *flags])
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output


def test_errors_go_to_the_caller(tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(ImageError, match="script"):
        CliRunner().invoke(inspect, [str(script)], catch_exceptions=False)


def test_a_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch, go_program: Path) -> None:
    def refuse(*_arguments: object) -> int:
        # Root may read every file; what the kernel tells others is put in its place.
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ImageError, match="Permission denied") as error:
        make_report(go_program)
    assert error.value.remedy == "run as a user who may read it"
