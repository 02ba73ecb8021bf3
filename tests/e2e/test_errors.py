"""Whatever cannot be done is said, with what to do about it, by an exit code that says whose fault it is."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from spanweld.layouts import SdkLayout
from spanweld.plan import make_plan
from tests.support.agent import COMMAND, attach, run
from tests.support.client import get
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.plain import plain
from tests.support.remains import (
    PINS,
    KernelObjects,
    assert_untouched,
    probed,
    thread_ids,
    tracer_processes,
    tracers_of_threads,
    wait_until,
)
from tests.support.services import Service, binary
from tests.support.steady import Request, SteadyLoad
from tests.support.traces import assert_child, manual_spans, server_spans, wrong
from tests.support.unknown import of_unknown_version

pytestmark = pytest.mark.root

WRONG_CALL, HOST, IMAGE, TARGET = 2, 3, 4, 5
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


@dataclass(frozen=True, slots=True)
class Said:
    """What a command that had to fail said: its message, and the lines below it."""

    code: int
    message: str
    remedy: str


def refused(
    *arguments: str,
    environ: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    prepare: Callable[[], None] | None = None,
) -> Said:
    """Runs ``spanweld`` and takes its one error apart; ``before`` is a command that starts it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SUDO_"))}
    done = subprocess.run(
        [*before, *COMMAND, *arguments],
        env={**kept, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=prepare,
        check=False,
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.splitlines()
    assert lines, "nothing was said"
    assert lines[0].startswith("spanweld: "), done.stderr
    assert all(line.startswith("  ") for line in lines[1:]), done.stderr
    return Said(done.returncode, lines[0].removeprefix("spanweld: "), "\n".join(lines[1:]).strip())


@pytest.fixture(scope="module")
def lab() -> Iterator[Service]:
    with Service(binary("lab", "release")) as service:
        yield service


# The host


NOT_ROOT = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    # Only so that it can read an interpreter below /root.
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)


@pytest.mark.parametrize("arguments", ["run -- {plain}", "attach --pid {pid}", "attach --exe */release/lab"])
def test_not_root(arguments: str, lab: Service) -> None:
    """Also where the processes that would match cannot be seen without root."""
    said = refused(*arguments.format(plain=plain(), pid=lab.pid).split(), before=NOT_ROOT)
    assert said.code == HOST
    assert "needs root" in said.message
    assert "sudo" in said.remedy


def in_own_mounts(script: str, *arguments: str) -> tuple[str, ...]:
    """A command that changes what is mounted, for the command after it alone."""
    return ("unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh", *arguments)


@pytest.mark.parametrize("how", ["run", "attach"])
def test_no_btf(how: str, lab: Service) -> None:
    arguments = ("run", "--", str(plain())) if how == "run" else ("attach", "--pid", str(lab.pid))
    said = refused(*arguments, before=in_own_mounts("mount -t tmpfs none /sys/kernel/btf"))
    assert said.code == HOST
    assert "/sys/kernel/btf/vmlinux" in said.message
    assert "CONFIG_DEBUG_INFO_BTF" in said.remedy


def unmount(folder: str) -> str:
    """A command for ``in_own_mounts``; on a fresh machine nothing is mounted there yet."""
    return f"umount --lazy {folder} 2>/dev/null || ! mountpoint -q {folder}"


WITHOUT_MOUNTING = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")


def test_bpffs_that_is_missing_and_cannot_be_mounted() -> None:
    said = refused("run", "--", str(plain()), before=in_own_mounts(unmount("/sys/fs/bpf"), *WITHOUT_MOUNTING))
    assert said.code == HOST
    assert "bpffs is not mounted at /sys/fs/bpf" in said.message
    assert "mount -t bpf" in said.remedy


def test_tracefs_that_is_missing_and_cannot_be_mounted() -> None:
    before = in_own_mounts(unmount("/sys/kernel/tracing"), *WITHOUT_MOUNTING)
    said = refused("run", "--", str(plain()), before=before)
    assert said.code == HOST
    assert "tracefs is not mounted at /sys/kernel/tracing" in said.message
    assert "mount -t tracefs" in said.remedy


@pytest.mark.parametrize("folder", ["/sys/fs/bpf", "/sys/kernel/tracing", "/sys/kernel/security"])
def test_file_system_that_is_missing_is_mounted(folder: str) -> None:
    done = subprocess.run(
        [
            *in_own_mounts(unmount(folder)),
            *COMMAND,
            *("run", "--export", "json:/dev/null", "--", str(plain()), "cat"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "out "), done.stderr


# The process


def test_no_such_process() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    said = refused("attach", "--pid", str(gone.pid))
    assert said.code == TARGET
    assert said.message == f"there is no process {gone.pid}"
    assert "pgrep" in said.remedy


def test_no_process_of_that_name() -> None:
    said = refused("attach", "--exe", "*/no/such/service")
    assert said.code == TARGET
    assert "'*/no/such/service'" in said.message
    assert said.remedy


def test_process_that_nobody_waits_for() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    try:
        wait_until(lambda: ") Z " in Path(f"/proc/{pid}/stat").read_text(), "it is a zombie")
        said = refused("attach", "--pid", str(pid))
    finally:
        os.waitpid(pid, 0)
    assert said.code == TARGET
    assert "has ended and waits for its parent" in said.message
    assert said.remedy


def numbers(folder: Path) -> set[int]:
    """Entries whose names are numbers."""
    return {int(entry.name) for entry in folder.iterdir() if entry.name.isdigit()}


def test_thread_of_the_kernel() -> None:
    # PF_KTHREAD is bit 21 of the flags, proc_pid_stat(5).
    pid = next(
        str(pid)
        for pid in sorted(numbers(Path("/proc")))
        if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]) >> 21 & 1
    )
    said = refused("attach", "--pid", pid)
    assert said.code == TARGET
    assert "is a thread of the kernel" in said.message


def test_thread_instead_of_its_process(lab: Service) -> None:
    tid = max(thread_ids(lab.pid))
    said = refused("attach", "--pid", str(tid))
    assert said.code == TARGET
    assert f"{tid} is a thread of process {lab.pid}" in said.message
    assert f"--pid {lab.pid}" in said.remedy


@pytest.mark.parametrize("write", ["auto", "stop", "off"])
def test_process_that_is_traced_by_spanweld_already(lab: Service, write: str) -> None:
    with attach(lab.pid, "--export", "json:/dev/null") as first:
        objects = KernelObjects.of(first.process.pid)
        tracers = tracer_processes(lab.pid)
        said = refused("attach", "--write", write, "--pid", str(lab.pid))
        assert said.code == TARGET
        assert f"traced by spanweld already (process {first.process.pid})" in said.message
        assert f"kill {first.process.pid}" in said.remedy
        # And the first one did not notice.
        assert tracer_processes(lab.pid) == tracers
        assert (PINS / str(lab.pid) / "spans_in_progress").exists()
        assert get(lab.address, "/nested/1").status == 200
        assert first.stop() == 0
        assert "pid" not in first.messages.join().partition("ready (pid")[2].partition("\n")[2]
    assert_untouched(lab.pid, lab.executable, objects)


DEBUGGERS = {
    "strace": ["strace", "-f", "-o", "/dev/null", "-p", "{pid}"],
    "gdb": ["gdb", "-nx", "-q", "-batch", "-ex", "attach {pid}", "-ex", "continue"],
}


@contextlib.contextmanager
def traced_by(name: str, pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that another tracer has; it runs on."""
    command = [word.format(pid=pid) for word in DEBUGGERS[name]]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as tracer:
        try:
            wait_until(lambda: tracers_of_threads(pid), f"{name} has attached", 30)
            yield tracer
        finally:
            tracer.send_signal(signal.SIGINT if name == "gdb" else signal.SIGTERM)
            try:
                tracer.wait(10)
            except subprocess.TimeoutExpired:
                tracer.kill()


@pytest.mark.parametrize("name", sorted(DEBUGGERS))
def test_another_tracer_where_stop_is_wanted(name: str) -> None:
    with Service(binary("lab", "release")) as service, traced_by(name, service.pid) as other:
        said = refused("attach", "--write", "stop", "--pid", str(service.pid))
        assert said.code == TARGET
        assert f"traced by process {other.pid} ({name})" in said.message
        assert "--write off" in said.remedy
        assert tracers_of_threads(service.pid) == {other.pid}
        assert not (PINS / str(service.pid)).exists()


@pytest.mark.parametrize("name", sorted(DEBUGGERS))
def test_another_tracer_where_the_mode_is_ours_to_choose(name: str, tmp_path: Path) -> None:
    """Automatic spans go on, with links to the manual ones."""
    with OtlpReceiver() as receiver, Service(binary("lab", "release")) as service:
        with traced_by(name, service.pid) as other:
            environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, **SOON}
            with attach(service.pid, "--export", "otlp", environ=environ) as agent:
                assert f"traced by process {other.pid} ({name})" in agent.messages.text
                assert "manual spans are linked, not adopted" in agent.messages.wait_for("ready (pid")
                for number in range(3):
                    assert get(service.address, f"/nested/{number}").status == 200
                assert agent.stop() == 0
            assert tracers_of_threads(service.pid) == {other.pid}
        servers = server_spans(receiver.spans)
        assert {span.attributes["url.path"] for span in servers} == {f"/nested/{n}" for n in range(3)}
        # The first root is only looked at: its layout is verified by it.
        assert sum(len(span.links) for span in servers) >= 2
        assert not list(tmp_path.iterdir())


def test_process_that_executes_another_program(tmp_path: Path) -> None:
    """It stays the same process: requests to the new program are traced, and it is let go as ever."""
    export = tmp_path / "spans.jsonl"
    read, write = os.pipe()
    with subprocess.Popen([plain()], stdin=read, stdout=subprocess.PIPE, text=True) as process:
        os.close(read)
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        with attach(process.pid, export=export) as agent:
            objects = KernelObjects.of(agent.process.pid)
            os.write(write, f"exec {binary('minimal', 'release')}\n".encode())
            address = process.stdout.readline().removeprefix("listening on ").strip()
            for number in range(3):
                assert get(address, f"/{number}").status == 200
            wait_until(lambda: export.exists() and "/2" in export.read_text(), "its requests are traced")
            assert agent.stop() == 0
        wait_until(lambda: not objects.alive(), "the agent's BPF objects are gone")
        assert not (PINS / str(process.pid)).exists()
        process.terminate()
        assert process.wait(10) == 0
        os.close(write)


# The executable


def executable(path: Path, code: bytes) -> Path:
    """A file that can be executed."""
    path.write_bytes(code)
    path.chmod(0o755)
    return path


def patched(path: Path, offset: int, value: bytes) -> Path:
    """The plain program with some bytes changed."""
    code = bytearray(plain().read_bytes())
    code[offset : offset + len(value)] = value
    return executable(path, bytes(code))


@pytest.mark.parametrize("command", ["run", "inspect"])
def test_script_instead_of_a_binary(command: str, tmp_path: Path) -> None:
    script = executable(tmp_path / "start.sh", b"#!/bin/sh\nexec true\n")
    said = refused(command, str(script))
    assert said.code == IMAGE
    assert f"{script}: a script" in said.message
    assert said.remedy


def test_script_that_runs() -> None:
    """Its process runs an interpreter, which is no Rust program."""
    with subprocess.Popen(["sh", "-c", "read line"], stdin=subprocess.PIPE) as process:
        said = refused("attach", "--pid", str(process.pid))
        assert process.stdin is not None
        process.stdin.close()
    assert said.code == IMAGE
    assert "not a Rust program" in said.message
    assert "interpreter" in said.remedy


def test_another_architecture(tmp_path: Path) -> None:
    said = refused("run", str(patched(tmp_path / "arm", 18, (183).to_bytes(2, "little"))))
    assert said.code == IMAGE
    assert "AArch64" in said.message
    assert "x86-64" in f"{said.message} {said.remedy}"


def test_32_bits(tmp_path: Path) -> None:
    said = refused("run", str(patched(tmp_path / "short", 4, b"\x01")))
    assert said.code == IMAGE
    assert "32-bit" in said.message
    assert said.remedy


def test_damaged_executable(tmp_path: Path) -> None:
    said = refused("run", str(executable(tmp_path / "cut", plain().read_bytes()[:100])))
    assert said.code == IMAGE
    assert said.remedy


def compiled(folder: Path, *, go: bool) -> Path:
    """A C program, or one with the section by which Go's linker marks its own."""
    program = folder / "program"
    (folder / "program.c").write_text("#include <unistd.h>\nint main(void) { return (int)pause(); }\n")
    subprocess.run(["gcc", "-O2", "-o", program, folder / "program.c"], check=True)
    if go:
        (folder / "buildinfo").write_bytes(b"\xff Go buildinf:\x08\x02" + bytes(16))
        added = f".go.buildinfo={folder / 'buildinfo'}"
        subprocess.run(["objcopy", "--add-section", added, program], check=True)
    return program


@pytest.mark.parametrize("how", ["run", "attach"])
@pytest.mark.parametrize("go", [True, False])
def test_other_languages(how: str, go: bool, tmp_path: Path) -> None:
    program = compiled(tmp_path, go=go)
    if how == "run":
        said = refused("run", str(program))
    else:
        with subprocess.Popen([program]) as process:
            said = refused("attach", "--pid", str(process.pid))
            process.terminate()
    assert said.code == IMAGE
    assert ("a Go program" if go else "not a Rust program") in said.message
    assert said.remedy


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed; its mark is tested")
def test_real_go(tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text("package main\n\nfunc main() { select {} }\n")
    environ = {**os.environ, "GOCACHE": str(tmp_path / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", "program", "main.go"], cwd=tmp_path, env=environ, check=True)
    said = refused("run", str(tmp_path / "program"))
    assert said.code == IMAGE
    assert "a Go program" in said.message


def automatic_only(program: Path, says: str, tmp_path: Path) -> None:
    """Requests of a service whose manual spans cannot be adopted are traced all the same."""
    with OtlpReceiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, **SOON}
        with Service(program, environ=environ) as service:
            with attach(service.pid, "--export", "otlp", environ=environ) as agent:
                ready = agent.messages.wait_for("ready (pid")
                assert "manual spans are left alone" in ready
                assert re.search(says, ready), ready
                assert not tracer_processes(service.pid)  # nothing to write, nobody to trace
                with SteadyLoad(service.address, Request("/nested/{n}"), 2) as load:
                    load.wait_for_more(10)
                    load.stop()
                assert agent.stop() == 0
            assert service.stop() == 0
        spans = receiver.spans
    assert not wrong(spans)
    paths = {span.attributes["url.path"] for span in server_spans(spans)}
    assert paths == {f"/nested/{number}" for number in load.answered}
    traces = {span.trace_id for span in server_spans(spans)}
    assert not [span for span in manual_spans(spans) if span.trace_id in traces]
    assert not list(tmp_path.glob("*.jsonl"))


def test_stripped_build_in_which_no_generator_is_certain(tmp_path: Path) -> None:
    subprocess.run(["strip", "-o", tmp_path / "stripped", binary("lab", "release")], check=True)
    code = (tmp_path / "stripped").read_bytes()
    assert b"RandomIdGenerator" in code
    program = executable(tmp_path / "lab", code.replace(b"RandomIdGenerator", b"CustomIdGenerator"))
    automatic_only(program, "no symbols, and new_trace_id", tmp_path)


@pytest.fixture(scope="module")
def to_be_learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lab with a version of the SDK that nobody has seen, whose code does not tell its layout."""
    return of_unknown_version(
        binary("lab", "release"), tmp_path_factory.mktemp("unknown") / "lab", tells=False
    )


def places_of_lab() -> set[tuple[str, str]]:
    """What can be learned of the lab's layout, by the database."""
    layout = make_plan(binary("lab", "release")).layout
    assert isinstance(layout, SdkLayout)
    assert layout.span_end_seconds is not None
    places = {
        "trace id": layout.span_context + layout.context_trace_id,
        " span id": layout.span_context + layout.context_span_id,
        " flags": layout.span_context + layout.context_flags,
        " parent": layout.span_parent_id,
        " time": min(layout.span_start_seconds, layout.span_end_seconds),
    }
    return {(name, hex(place)) for name, place in places.items()}


def test_version_of_the_sdk_that_is_not_known_yet(to_be_learned: Path) -> None:
    """Its layout is learned of its spans: nothing is adopted before, and every root after."""
    with OtlpReceiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, **SOON}
        with Service(to_be_learned, environ=environ) as service:
            with attach(service.pid, "--export", "otlp", environ=environ) as agent:
                ready = agent.messages.wait_for("ready (pid")
                assert "opentelemetry_sdk 0.99.0 are adopted once their layout is learned" in ready
                for number in range(3):
                    assert get(service.address, f"/nested/{number}").status == 200
                assert "was learned" not in agent.messages.text
                with SteadyLoad(service.address, Request("/nested/{n}"), 2) as load:
                    said = agent.messages.wait_for("the layout was learned from")
                    assert said.endswith("): manual spans are adopted"), said
                    assert set(re.findall(r"([a-z ]+) at (0x[0-9a-f]+)", said)) == places_of_lab()
                    # The first root of them verifies it.
                    load.wait_for_more(10)
                    load.stop()
                certain = range(load.next_number, load.next_number + 10)
                for number in certain:
                    assert get(service.address, f"/nested/{number}").status == 200
                remote = {"traceparent": f"00-{0xAA:032x}-{0xBB:016x}-01"}
                assert get(service.address, f"/remote-parent/{certain.stop}", remote).status == 200
                assert agent.stop() == 0
            assert service.stop() == 0
        spans = receiver.spans
    assert not wrong(spans)
    servers = {span.attributes["url.path"]: span for span in server_spans(spans)}
    first = [span for span in manual_spans(spans) if span.attributes.get("request.number") == 0]
    assert first
    assert not {span.trace_id for span in first} & {span.trace_id for span in servers.values()}
    for number in certain:
        server = servers[f"/nested/{number}"]
        of_request = manual_spans(spans, number)
        root = next(span for span in of_request if span.name == "root")
        assert_child(root, server)
        assert {span.trace_id for span in of_request} == {server.trace_id}
    server = servers[f"/remote-parent/{certain.stop}"]
    assert any(span.parent_span_id == server.span_id for span in manual_spans(spans, certain.stop))


def test_layout_that_cannot_be_learned(to_be_learned: Path) -> None:
    """Of roots alone nobody learns where the parent is."""
    with OtlpReceiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, **SOON}
        with Service(to_be_learned, environ=environ) as service:
            with attach(service.pid, "--export", "otlp", environ=environ) as agent:
                with SteadyLoad(service.address, Request("/roots/{n}"), 16) as load:
                    said = agent.messages.wait_for("could not be learned", 60)
                    load.wait_for_more(20)
                    load.stop()
                assert "learned: 0 children of local spans were seen, of 2000 spans: manual spans" in said
                assert "are left alone; automatic spans go on" in said
                wait_until(lambda: not probed(service.pid, to_be_learned), "all probes are off")
                assert agent.stop() == 0
            assert service.stop() == 0
        spans = receiver.spans
    assert not wrong(spans)
    assert len(server_spans(spans)) == len(load.answered)
    assert not any(span.parent_span_id for span in manual_spans(spans))


# Exports


def test_export_that_is_not_known(lab: Service) -> None:
    said = refused("attach", "--export", "jaeger", "--pid", str(lab.pid))
    assert said.code == WRONG_CALL
    assert "'jaeger' is not known" in said.message
    assert "console, otlp, or json:FILE" in said.remedy


@pytest.mark.parametrize("path", ["{folder}/no/such/folder/x.jsonl", "{folder}"])
def test_file_that_cannot_be_written(path: str, lab: Service, tmp_path: Path) -> None:
    path = path.format(folder=tmp_path)
    said = refused("attach", "--export", f"json:{path}", "--pid", str(lab.pid))
    assert said.code == WRONG_CALL
    assert path in said.message
    assert said.remedy
    assert not (PINS / str(lab.pid)).exists()


def test_file_that_becomes_full(lab: Service) -> None:
    """Said once, and counted at the end; the service does not notice."""
    with attach(lab.pid, "--export", "json:/dev/full", environ=SOON) as agent:
        for number in range(5):
            assert get(lab.address, f"/none/{number}").status == 200
        agent.messages.wait_for("spans cannot be written to /dev/full: No space left on device")
        assert get(lab.address, "/none/5").status == 200
        assert agent.stop() == 0
    said = agent.messages.join()
    assert said.count("cannot be written to /dev/full") == 1
    assert "6 spans could not be exported (/dev/full: No space left on device)" in said


def test_endpoint_that_comes_up_later() -> None:
    """Spans wait for it, and each comes once."""
    with OtlpReceiver() as receiver, Service(binary("minimal", "release")) as service:
        receiver.refuse()
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, **SOON}
        with attach(service.pid, environ=environ) as agent:
            for number in range(20):
                assert get(service.address, f"/{number}").status == 200
            agent.messages.wait_for(receiver.http_endpoint, 20)
            receiver.listen()
            spans = receiver.wait_for(lambda spans: len(spans) >= 20, 30)
            assert sorted(int(str(span.attributes["url.path"])[1:]) for span in spans) == list(range(20))
            assert agent.stop() == 0
            assert "could not be exported" not in agent.messages.join()
        assert len(receiver.spans) == 20


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_endpoint_that_stays_down(protocol: str) -> None:
    """No more than the bound is kept, all are counted, and the end does not wait for it."""
    with OtlpReceiver() as receiver, Service(binary("minimal", "release")) as service:
        endpoint = receiver.grpc_endpoint if protocol == "grpc" else receiver.http_endpoint
        receiver.refuse()
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_BSP_MAX_QUEUE_SIZE": "10",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with attach(service.pid, environ=environ) as agent:
            for number in range(30):
                assert get(service.address, f"/{number}").status == 200
            began = time.monotonic()
            assert agent.stop() == 0
            assert time.monotonic() - began < 5
        said = agent.messages.join()
        assert "30 spans could not be exported (" in said
        assert receiver.requests == []


def test_reader_of_the_console_that_goes_away(lab: Service) -> None:
    """``spanweld attach | head``: the agent ends or goes on, but says no nonsense, and lets go."""
    with subprocess.Popen(
        [*COMMAND, "attach", "--export", "console", "--pid", str(lab.pid)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        assert agent.stderr is not None
        assert "ready" in agent.stderr.readline()
        agent.stdout.close()
        for number in range(5):
            assert get(lab.address, f"/nested/{number}").status == 200
        time.sleep(0.5)
        agent.send_signal(signal.SIGTERM)
        rest = agent.stderr.read()
        assert agent.wait(10) in (0, 141)
        assert "Traceback" not in rest, rest
        assert "Exception" not in rest, rest
    assert not (PINS / str(lab.pid)).exists()
    wait_until(lambda: probed(lab.pid, lab.executable) == 0, "the probes are gone")


# Calls


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["attach"], "either --pid N or --exe GLOB"),
        (["attach", "--pid", "1", "--exe", "x"], "either --pid N or --exe GLOB"),
        (["run", "no-such-program"], "there is no program no-such-program"),
        (["run", "/etc"], "/etc is a folder"),
        (["run", "/etc/passwd"], "/etc/passwd is not executable"),
        (["run", "--exclude-path", "healthz", "--", "{plain}"], "--exclude-path 'healthz' is not a path"),
    ],
)
def test_calls_that_cannot_be_meant(arguments: list[str], fragment: str) -> None:
    said = refused(*(word.format(plain=plain()) for word in arguments))
    assert said.code == (HOST if "inline" in arguments else WRONG_CALL)
    assert fragment in said.message
    assert said.remedy


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--no-such-option", "--", "{plain}"],
        ["attach", "--no-such-option"],
        ["no-such-command"],
        ["run"],
    ],
)
def test_calls_that_are_no_calls(arguments: list[str]) -> None:
    done = subprocess.run(
        [*COMMAND, *(word.format(plain=plain()) for word in arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == WRONG_CALL
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "Error: " in done.stderr or done.stderr.startswith("spanweld: ")


def test_kernel_writer_where_the_kernel_is_locked_down() -> None:
    lockdown = Path("/sys/kernel/security/lockdown")
    if not lockdown.exists() or "[none]" in lockdown.read_text():
        pytest.skip("this kernel is not locked down")
    said = refused("run", "--write", "kernel", "--", str(plain()))
    assert said.code == HOST
    assert "locked down" in said.message
    assert "--write auto" in said.remedy


# doctor


def test_doctor() -> None:
    done = subprocess.run([*COMMAND, "doctor"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "services can be traced here" in done.stdout
    for word in (
        "kernel",
        "root",
        "BTF",
        "bpffs",
        "lockdown",
        "write inline",
        "(auto takes it)",
        "ns a probe",
    ):
        assert word in done.stdout


def doctor_as_json(before: Sequence[str] = ()) -> tuple[int, dict[str, object]]:
    """Exit code and object of ``doctor --json``."""
    import json

    done = subprocess.run(
        [*before, *COMMAND, "doctor", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return done.returncode, found


def test_doctor_as_json() -> None:
    code, found = doctor_as_json()
    assert code == 0
    assert found["schema"] == 1
    assert found["problem"] == ""
    writers = found["writers"]
    assert isinstance(writers, dict)
    assert set(writers) == {"kernel", "inline", "stop", "off"}
    assert writers[str(found["auto"])] == "works"
    assert found["inject"] == "works"
    assert isinstance(found["uprobe_ns"], float)
    assert isinstance(found["tracepoint_ns"], float)


@pytest.mark.parametrize(
    ("before", "problem"),
    [
        (NOT_ROOT, "needs root"),
        (in_own_mounts("mount -t tmpfs none /sys/kernel/btf"), "no type information"),
        (in_own_mounts(unmount("/sys/fs/bpf"), *WITHOUT_MOUNTING), "bpffs is not mounted"),
    ],
)
def test_doctor_where_services_cannot_be_traced(before: Sequence[str], problem: str) -> None:
    code, found = doctor_as_json(before)
    assert code == HOST
    assert problem in str(found["problem"])
    assert found["remedy"]


def test_doctor_says_the_same_as_run() -> None:
    """The mode that it names is the one that is taken."""
    _, found = doctor_as_json()
    with run([str(binary("lab", "release"))], "--export", "json:/dev/null") as agent:
        assert f"(write {found['auto']})" in agent.messages.wait_for("ready (pid")
        assert agent.service_address  # its handler of SIGTERM is there
        assert agent.stop() == 0
