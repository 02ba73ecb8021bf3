"""Services without symbols: what their code shows is what symbols say; what is uncertain is not found."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from spanweld.commands.inspect import make_report
from spanweld.image import FoundBy, Image, examine, find_functions, find_span_arguments, locate
from spanweld.image.stripped import ExportedData, SpanArguments, find_span_processors
from spanweld.image.unwind import FunctionTable
from spanweld.layouts import SdkLayout, layout_of
from spanweld.plan import make_plan
from spanweld.probes.declaration import Seen
from tests.unit.image.samples import FAKE_TOKIO, USES_TOKIO, RustBuilder, ServiceBuilder
from tools.check_stripped import NEW_TASKS, PATTERNS, TASK_ID, WAKERS, Outcome, compare, strip

BUILDER = "<opentelemetry_sdk::trace::tracer::SdkTracer as *::trace::tracer::Tracer>::build_with_context"
RECORDER = "opentelemetry_sdk::trace::tracer::SdkTracer::build_recording_span"


def _changed(path: Path, output: Path, old: bytes, new: bytes) -> Path:
    """A copy with all of ``old`` replaced by as many bytes."""
    content = path.read_bytes()
    assert old in content
    assert len(old) == len(new)
    output.write_bytes(content.replace(old, new))
    return output


def _found(path: Path) -> dict[str, bool]:
    with Image.open(path) as image:
        return {
            pattern.rpartition("::")[2]: not isinstance(functions, str)
            for pattern, functions in locate(image, PATTERNS).items()
        }


@pytest.mark.parametrize("name", ["lab", "users", "sockets"])
def test_services_without_symbols(service: ServiceBuilder, name: str, tmp_path: Path) -> None:
    path = service(name, "release")
    outcomes = {
        finding.name: finding.outcome for finding in compare(path, strip(path, tmp_path / "stripped"))
    }
    # `sockets` holds no tokio.
    of_tokio = Outcome.ABSENT if name == "sockets" else Outcome.RIGHT
    assert {outcomes.pop(name) for name in (TASK_ID, NEW_TASKS, WAKERS)} == {of_tokio}
    assert set(outcomes.values()) == {Outcome.RIGHT}


@pytest.mark.parametrize("profile", ["debug", "release"])
def test_what_is_found_is_never_wrong(service: ServiceBuilder, profile: str, tmp_path: Path) -> None:
    for name in ("lab", "users", "store", "sockets", "minimal"):
        path = service(name, profile)
        for finding in compare(path, strip(path, tmp_path / "stripped")):
            assert finding.outcome is not Outcome.WRONG, (name, finding)


def test_the_plan_is_the_same(service: ServiceBuilder, tmp_path: Path) -> None:
    path = service("lab", "release")
    plan, bare = make_plan(path), make_plan(strip(path, tmp_path / "stripped"))
    assert not plan.why_no_adoption
    assert not bare.why_no_adoption
    # What may be an id generator of the service's own is one in calls from where spans begin.
    own = {point.offset for point in plan.points if "lab::ids::" in point.function.name}
    others = {point.offset: point for point in bare.points if point.cookie}
    assert own
    assert own <= others.keys()
    with Image.open(path) as image:
        [begin] = find_functions(image, BUILDER)
    for point in others.values():
        returns_to = point.function.address + point.offset - point.function.file_offset + point.cookie
        assert returns_to in range(begin.address, begin.address + begin.size)
    assert bare.knows_generators
    assert [(point.probe, point.offset) for point in bare.points if not point.cookie] == [
        (point.probe, point.offset) for point in plan.points if point.offset not in own
    ]
    assert bare.layout == plan.layout
    assert plan.facts.task_id is not None
    assert bare.facts.task_id is not None
    assert bare.facts.task_id.offset_from_fs == plan.facts.task_id.offset_from_fs
    assert bare.facts.task_id.confirmed


def test_a_debug_build(service: ServiceBuilder, tmp_path: Path) -> None:
    """What begins and ends spans is not recognised in it; the processors are."""
    path = service("lab", "debug")
    plan = make_plan(strip(path, tmp_path / "stripped"))
    assert (plan.why_no_adoption, plan.seen, plan.seen_late) == ("", Seen.EXPORTED, True)
    points = {point.offset for point in plan.points if point.probe.program == "otel_on_end"}
    with Image.open(path) as image:
        functions = find_functions(
            image, "<* as opentelemetry_sdk::trace::span_processor::SpanProcessor>::on_end"
        )
    assert len(points) == 3
    assert points == {function.file_offset for function in functions}
    assert {point.function.found_by for point in plan.points} == {FoundBy.CODE}
    # Where it is not known what calls generators, only the SDK's own is one.
    assert not plan.knows_generators
    assert "another generator than the SDK's" in make_report(plan.facts.path).verdict_reason


def test_processors_are_told_by_what_they_take(service: ServiceBuilder) -> None:
    with Image.open(service("lab", "release")) as image:
        layout = layout_of(image, examine(image))
        assert isinstance(layout, SdkLayout)
        data = layout.exported_data
        assert data == ExportedData(texts=(0x120, 0x138), size=0x160)
        assert len(find_span_processors(image, data)) == 3
        # Of smaller data they would read what is beyond it; of greater they leave a text.
        for other in (ExportedData(data.texts, 0x100), ExportedData((0x120, 0x238), 0x260)):
            assert find_span_processors(image, other) == (
                "no type takes over the texts of exported data as a span processor does"
            )


def test_without_debug_information_only_symbols_are_used(service: ServiceBuilder, tmp_path: Path) -> None:
    path = service("users", "release")
    with Image.open(strip(path, tmp_path / "stripped", "--strip-debug")) as image:
        functions = locate(image, [RECORDER])[RECORDER]
    assert not isinstance(functions, str)
    assert [function.found_by for function in functions] == [FoundBy.SYMBOL]


def test_how_a_recording_span_is_made(service: ServiceBuilder) -> None:
    with Image.open(service("lab", "release")) as image:
        [function] = find_functions(image, RECORDER)
        assert find_span_arguments(image, function) == SpanArguments(
            context=3, parent=2, parent_is_id=False, parent_offset=0x150
        )
        [other] = find_functions(image, "opentelemetry_sdk::trace::span::Span::ensure_ended_and_exported")
        assert find_span_arguments(image, other) is None


def test_function_bounds_are_those_of_the_symbols(service: ServiceBuilder, tmp_path: Path) -> None:
    path = service("users", "release")
    lines = subprocess.run(["nm", "-S", str(path)], capture_output=True, text=True, check=True).stdout
    symbols = re.findall(r"^([0-9a-f]+) ([0-9a-f]+) [tT] _(?:ZN|R)", lines, re.MULTILINE)
    with Image.open(strip(path, tmp_path / "stripped")) as image:
        table = FunctionTable(image)
        assert len(symbols) > 1000
        for address, size in symbols:
            assert table.size(int(address, 16)) == int(size, 16)
            assert table.containing(int(address, 16) + int(size, 16) - 1) == int(address, 16)
        assert table.size(int(symbols[0][0], 16) + 1) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        # The type's name, as Debug prints it; the source that its methods panic in.
        (b"RandomIdGenerator", b"CustomIdGenerator"),
        (b"/trace/id_generator/mod.rs", b"/trace/id_generator/own.rs"),
    ],
)
def test_a_generator_that_is_not_certain(
    service: ServiceBuilder, tmp_path: Path, old: bytes, new: bytes
) -> None:
    bare = strip(service("lab", "release"), tmp_path / "stripped")
    found = _found(_changed(bare, tmp_path / "changed", old, new))
    assert found == {
        "new_trace_id": False,
        "new_span_id": False,
        "build_with_context": True,
        "build_recording_span": True,
        "ensure_ended_and_exported": True,
        # Only with the layout of exported data.
        "on_end": False,
    }
    why = make_plan(tmp_path / "changed").why_no_adoption
    assert "no symbols" in why
    assert "RandomIdGenerator" in why


def test_no_table_of_functions(service: ServiceBuilder, tmp_path: Path) -> None:
    bare = strip(service("lab", "release"), tmp_path / "stripped")
    with Image.open(bare) as image:
        section = image.section(".eh_frame_hdr")
        assert section is not None
        header = image.read(section.offset, 12)
    changed = _changed(bare, tmp_path / "changed", header, bytes(12))
    assert not any(_found(changed).values())
    with Image.open(changed) as image:
        facts = examine(image)
    assert facts.task_id is None
    assert "no symbol table" in facts.task_id_reason


def test_a_second_caller_makes_the_function_uncertain(service: ServiceBuilder, tmp_path: Path) -> None:
    path = service("lab", "release")
    bare = strip(path, tmp_path / "stripped")
    with Image.open(path) as image:
        [recorder] = find_functions(image, RECORDER)
        [other] = find_functions(image, "opentelemetry_sdk::trace::span::build_export_data")
    content = bytearray(bare.read_bytes())
    content[other.file_offset] = 0xE8
    distance = recorder.address - (other.address + 5)
    content[other.file_offset + 1 : other.file_offset + 5] = distance.to_bytes(4, "little", signed=True)
    changed = tmp_path / "changed"
    changed.write_bytes(content)
    assert _found(bare)["build_recording_span"]
    assert not _found(changed)["build_recording_span"]


def test_a_program_that_only_looks_like_tokio_has_no_task_id(rust: RustBuilder, tmp_path: Path) -> None:
    path = rust(USES_TOKIO, "-O", libraries={"tokio": FAKE_TOKIO})
    with Image.open(strip(path, tmp_path / "stripped")) as image:
        facts = examine(image)
    assert facts.task_id is None
    assert "vtable" in facts.task_id_reason
