"""tokio's task id and crate versions, on programs that say the truth themselves and on the services."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from spanweld.image import Image, analyse, find_many
from spanweld.image.crates import find_provenance
from spanweld.image.tls import TaskIdOffset
from tests.unit.image.samples import FAKE_TOKIO, PLAIN, USES_TOKIO, RustBuilder, ServiceBuilder

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


@pytest.mark.parametrize("mangling", ["legacy", "v0"])
@pytest.mark.parametrize("level", ["0", "1", "2", "3", "s", "z"])
def test_task_id_is_where_the_program_says(rust: RustBuilder, level: str, mangling: str) -> None:
    flags = ["-Csymbol-mangling-version=v0"] if mangling == "v0" else []
    path = rust(USES_TOKIO, f"-Copt-level={level}", *flags, libraries={"tokio": FAKE_TOKIO})
    said = int(subprocess.run([str(path)], capture_output=True, text=True, check=True).stdout)
    task_id = analyse(path).task_id
    assert task_id is not None
    assert task_id.offset_from_fs == said
    assert task_id.confirmed


def test_task_id_in_a_static_program_at_a_fixed_address(rust: RustBuilder) -> None:
    flags = ("-O", "-Crelocation-model=static", "-Ctarget-feature=+crt-static")
    path = rust(USES_TOKIO, *flags, libraries={"tokio": FAKE_TOKIO})
    said = int(subprocess.run([str(path)], capture_output=True, text=True, check=True).stdout)
    task_id = analyse(path).task_id
    assert task_id is not None
    assert task_id.offset_from_fs == said


def test_functions_that_disagree_give_no_task_id(rust: RustBuilder) -> None:
    lying = FAKE_TOKIO.replace(
        "fn drop(&mut self) { context::set_current_task_id(self.parent_task_id); }",
        "fn drop(&mut self) { context::CONTEXT.with(|ctx| "
        "ctx.before[2].set(self.parent_task_id.map_or(0, |id| id.get()))) }",
    )
    assert lying != FAKE_TOKIO
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
