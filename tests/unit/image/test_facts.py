"""tokio's task id and crate versions, on programs that say the truth themselves and on the services."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spanweld.image import Image, analyse, find_many
from spanweld.image.crates import find_provenance
from spanweld.image.tls import TaskIdOffset
from tests.unit.image.samples import (
    FAKE_OLD_TOKIO,
    FAKE_TOKIO,
    PLAIN,
    RUNS_TASKS,
    USES_TOKIO,
    RustBuilder,
    ServiceBuilder,
    inlined,
)
from tools.check_stripped import strip

GENERATOR = (
    "<opentelemetry_sdk::trace::id_generator::RandomIdGenerator"
    " as opentelemetry_sdk::trace::id_generator::IdGenerator>"
)
SDK_FUNCTIONS = (
    f"{GENERATOR}::new_trace_id",
    f"{GENERATOR}::new_span_id",
    "opentelemetry_sdk::trace::tracer::SdkTracer::build_recording_span",
    "opentelemetry_sdk::trace::span::Span::ensure_ended_and_exported",
)


def _places_said_by(path: Path) -> tuple[int, int]:
    """Distances from fs:0 of the task id and of the Option around it."""
    output = subprocess.run([str(path)], capture_output=True, text=True, check=True).stdout
    said, option = map(int, output.split())
    return said, option


@pytest.mark.parametrize("mangling", ["legacy", "v0"])
@pytest.mark.parametrize("level", ["0", "1", "2", "3", "s", "z"])
def test_task_id_is_where_the_program_says(rust: RustBuilder, level: str, mangling: str) -> None:
    flags = ["-Csymbol-mangling-version=v0"] if mangling == "v0" else []
    path = rust(USES_TOKIO, f"-Copt-level={level}", *flags, libraries={"tokio": FAKE_TOKIO})
    said, _ = _places_said_by(path)
    task_id = analyse(path).task_id
    assert task_id is not None
    assert task_id.offset_from_fs == said
    assert task_id.tag_offset_from_fs is None
    assert task_id.confirmed


@pytest.mark.parametrize("level", ["0", "2", "z"])
def test_task_id_with_a_tag(rust: RustBuilder, level: str) -> None:
    path = rust(USES_TOKIO, f"-Copt-level={level}", libraries={"tokio": FAKE_OLD_TOKIO})
    said, tag = _places_said_by(path)
    assert said != tag
    facts = analyse(path)
    assert facts.task_id is not None, facts.task_id_reason
    assert (facts.task_id.offset_from_fs, facts.task_id.tag_offset_from_fs) == (said, tag)
    assert facts.task_id.confirmed
    for function in ("enter", "drop", "set_current_task_id"):
        assert f"::{function}" in facts.task_id.source


@pytest.mark.parametrize("has_symbols", [True, False])
@pytest.mark.parametrize("tokio", [FAKE_TOKIO, FAKE_OLD_TOKIO], ids=["new", "old"])
def test_task_id_where_only_tasks_show_it(
    rust: RustBuilder, tmp_path: Path, tokio: str, has_symbols: bool
) -> None:
    path = rust(RUNS_TASKS, "-O", libraries={"tokio": inlined(tokio)})
    said, option = _places_said_by(path)
    facts = analyse(path if has_symbols else strip(path, tmp_path / "stripped"))
    assert facts.task_id is not None, facts.task_id_reason
    assert facts.task_id.offset_from_fs == said
    assert facts.task_id.tag_offset_from_fs == (option if option != said else None)
    assert facts.task_id.confirmed
    assert "raw::shutdown" in facts.task_id.source
    assert "enter" not in facts.task_id.source


@pytest.mark.parametrize(
    ("tokio", "version", "why"),
    [
        (FAKE_TOKIO, "1.21.2", "tokio 1.21.2 keeps no id of the current task"),
        (FAKE_TOKIO, "1.39.3", "beside the task id"),
        (FAKE_OLD_TOKIO, "1.40.0", "beside the task id"),
        (FAKE_OLD_TOKIO, "1.22.0", ""),
    ],
)
def test_task_id_that_the_version_does_not_have(
    rust: RustBuilder, tokio: str, version: str, why: str
) -> None:
    source = f'const PATH: &str = "x/registry/src/index/tokio-{version}/src/lib.rs";\n' + USES_TOKIO
    source = source.replace("drop(guard)", "drop(guard); std::hint::black_box(PATH)")
    facts = analyse(rust(source, "-O", libraries={"tokio": tokio}))
    assert facts.crates["tokio"] == (version,)
    assert why in facts.task_id_reason
    assert (facts.task_id is None) == bool(why)


def test_task_id_in_a_static_program_at_a_fixed_address(rust: RustBuilder) -> None:
    flags = ("-O", "-Crelocation-model=static", "-Ctarget-feature=+crt-static")
    path = rust(USES_TOKIO, *flags, libraries={"tokio": FAKE_TOKIO})
    said, _ = _places_said_by(path)
    task_id = analyse(path).task_id
    assert task_id is not None
    assert task_id.offset_from_fs == said


@pytest.mark.parametrize("tokio", [FAKE_TOKIO, FAKE_OLD_TOKIO], ids=["new", "old"])
def test_functions_that_disagree_give_no_task_id(rust: RustBuilder, tokio: str) -> None:
    lying = tokio.replace(
        "fn drop(&mut self) { context::set_current_task_id(self.parent_task_id); }",
        "fn drop(&mut self) { context::CONTEXT.with(|ctx| "
        "ctx.before[2].set(self.parent_task_id.map_or(0, |id| id.into()))) }",
    )
    assert lying != tokio
    facts = analyse(rust(USES_TOKIO, "-O", libraries={"tokio": lying}))
    assert facts.task_id is None
    assert "disagree" in facts.task_id_reason


def test_crate_versions_from_paths(rust: RustBuilder) -> None:
    paths = (
        "x/registry/src/index.crates.io-1949cf8c6b5b557f/opentelemetry_sdk-0.31.0/src/trace/span.rs",
        "x/registry/src/index.crates.io-1949cf8c6b5b557f/tower-http-0.6.11/src/lib.rs",
        "x/registry/src/index.crates.io-1949cf8c6b5b557f/rand-0.10.0-rc.1/src/lib.rs",
        "vendor/memchr-2.7.6/src/lib.rs",
        "vendor/memchr-2.8.3/src/lib.rs",
        "attempt to divide by zerotokio-1.47.1/src/runtime/mod.rs",
        "service-1/src/main.rs",
        "unknown1-2.3.4/source/lib.rs",
    )
    source = "fn main() { for text in [" + ", ".join(f'"{path}"' for path in paths)
    source += '] { println!("{}", std::hint::black_box(text)); } }'
    with Image.open(rust(source, "-O")) as image:
        crates = find_provenance(image).crates
    assert crates["opentelemetry_sdk"] == ("0.31.0",)
    assert crates["tower-http"] == ("0.6.11",)
    assert crates["rand"] == ("0.10.0-rc.1",)
    assert {"2.7.6", "2.8.3"} <= set(crates["memchr"])
    assert crates["tokio"] == ("1.47.1",)
    assert not crates.keys() & {"service", "unknown1"}


def test_compiler_agrees_with_rustc(rust: RustBuilder) -> None:
    output = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    lines = dict(line.split(": ", 1) for line in output.splitlines()[1:])
    facts = analyse(rust(PLAIN, "-O"))
    assert facts.rustc == lines["release"]
    assert facts.rustc_hash == lines["commit-hash"]


@pytest.mark.parametrize("profile", ["debug", "release"])
@pytest.mark.parametrize("name", ["users", "lab"])
def test_services_have_all_that_is_probed(service: ServiceBuilder, name: str, profile: str) -> None:
    path = service(name, profile)
    facts = analyse(path)
    assert facts.crate_version("opentelemetry_sdk") == "0.31.0"
    assert (facts.crate_version("tokio") or "").startswith("1.")
    assert isinstance(facts.task_id, TaskIdOffset)
    assert facts.task_id.confirmed
    with Image.open(path) as image:
        found = find_many(image, SDK_FUNCTIONS)
    assert {pattern: len(functions) for pattern, functions in found.items()} == dict.fromkeys(
        SDK_FUNCTIONS, 1
    )


def test_a_service_without_the_sdk(service: ServiceBuilder) -> None:
    facts = analyse(service("minimal", "release"))
    assert "opentelemetry_sdk" not in facts.crates
    assert facts.task_id is not None


def test_memory(service: ServiceBuilder) -> None:
    """Peak kibibytes of a process that does nothing else."""
    # Not ru_maxrss: it counts what the process was before it executed Python, a fork of this one.
    source = (
        "import sys\n"
        "from pathlib import Path\n"
        "from spanweld.image import analyse\n"
        "analyse(Path(sys.argv[1]))\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.partition('VmHWM:')[2].split()[0])\n"
    )
    peak = subprocess.run(
        [sys.executable, "-c", source, str(service("lab", "release"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(peak) < 100 << 10
