"""A target's resource."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from spanweld import __version__
from spanweld.errors import TargetError
from spanweld.model import Pid
from spanweld.resource import HostFacts, ProcessFacts, make_resource, read_host, read_process
from spanweld.settings import Settings

HOST = HostFacts(
    name="web-1",
    machine="x86_64",
    kernel="6.1.0",
    machine_id="0123456789abcdef0123456789abcdef",
    boot_id="a2b8c8d0-0000-4000-8000-000000000000",
    os_release={"NAME": "Debian GNU/Linux", "VERSION_ID": "12", "PRETTY_NAME": "Debian GNU/Linux 12"},
)
PROCESS = ProcessFacts(
    pid=Pid(42),
    executable=Path("/opt/shop/users"),
    parent_pid=Pid(1),
    owner="shop",
    start_ticks=1234,
    rustc_version="1.83.0",
)


def test_all_that_is_known_is_said() -> None:
    attributes = dict(make_resource(Settings(), PROCESS, HOST).attributes)
    uuid.UUID(str(attributes.pop("service.instance.id")))
    assert attributes == {
        "service.name": "users",
        "process.pid": 42,
        "process.parent_pid": 1,
        "process.executable.name": "users",
        "process.executable.path": "/opt/shop/users",
        "process.owner": "shop",
        "process.runtime.name": "rustc",
        "process.runtime.version": "1.83.0",
        "host.name": "web-1",
        "host.id": "0123456789abcdef0123456789abcdef",
        "host.arch": "amd64",
        "os.type": "linux",
        "os.name": "Debian GNU/Linux",
        "os.version": "12",
        "os.description": "Debian GNU/Linux 12 (kernel 6.1.0)",
        "telemetry.sdk.name": "spanweld",
        "telemetry.sdk.language": "rust",
        "telemetry.sdk.version": __version__,
        "telemetry.distro.name": "spanweld",
        "telemetry.distro.version": __version__,
    }


def test_what_is_not_known_is_left_out() -> None:
    attributes = make_resource(
        Settings(), ProcessFacts(Pid(42), Path("/users")), HostFacts("web-1", "riscv64", "6.1.0")
    ).attributes
    for name in ("process.owner", "process.parent_pid", "process.runtime.name", "host.id", "os.name"):
        assert name not in attributes
    assert attributes["host.arch"] == "riscv64"
    assert attributes["os.description"] == "Linux (kernel 6.1.0)"


@pytest.mark.parametrize(
    ("service_name", "own", "target", "expected"),
    [
        (None, {}, {}, "users"),
        (None, {}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=d"}, "d"),
        (None, {}, {"OTEL_SERVICE_NAME": "c", "OTEL_RESOURCE_ATTRIBUTES": "service.name=d"}, "c"),
        (None, {"service.name": "b"}, {"OTEL_SERVICE_NAME": "c"}, "b"),
        ("a", {"service.name": "b"}, {"OTEL_SERVICE_NAME": "c"}, "a"),
        (None, {}, {"OTEL_SERVICE_NAME": "", "OTEL_RESOURCE_ATTRIBUTES": "broken"}, "users"),
    ],
)
def test_where_the_services_name_comes_from(
    service_name: str | None, own: dict[str, str], target: dict[str, str], expected: str
) -> None:
    settings = Settings(service_name=service_name, resource_attributes=own)
    resource = make_resource(settings, replace(PROCESS, environ=target), HOST)
    assert resource.service_name == expected


def test_the_environment_wins_over_what_is_found_out() -> None:
    settings = Settings(resource_attributes={"host.name": "given", "deployment.environment.name": "test"})
    target = {"OTEL_RESOURCE_ATTRIBUTES": "host.name=ignored,service.namespace=shop%2Cweb"}
    attributes = make_resource(settings, replace(PROCESS, environ=target), HOST).attributes
    assert attributes["host.name"] == "given"
    assert attributes["deployment.environment.name"] == "test"
    assert attributes["service.namespace"] == "shop,web"


def test_an_instance_keeps_its_id_and_no_other_has_it() -> None:
    def instance_id(process: ProcessFacts, host: HostFacts = HOST) -> object:
        return make_resource(Settings(), process, host).attributes["service.instance.id"]

    ids = [
        instance_id(PROCESS),
        instance_id(replace(PROCESS, pid=Pid(43))),
        instance_id(replace(PROCESS, start_ticks=1235)),
        instance_id(PROCESS, replace(HOST, boot_id="b")),
        instance_id(replace(PROCESS, start_ticks=None)),
        instance_id(replace(PROCESS, start_ticks=None)),
    ]
    assert len(set(ids)) == len(ids)
    assert instance_id(PROCESS) == ids[0]


def test_a_live_process_is_read(tmp_path: Path) -> None:
    executable = tmp_path / "users (1)"
    shutil.copy(Path(sys.executable).resolve(), executable)
    environ = {
        **os.environ,
        "PYTHONHOME": sys.base_prefix,
        "OTEL_SERVICE_NAME": "users",
        "OTEL_RESOURCE_ATTRIBUTES": "a=b=c",
        "SECRET": "secret",
    }
    script = "import sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [executable, "-c", script], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        executable.unlink()
        facts = read_process(Pid(child.pid), "1.83.0")
        again = read_process(Pid(child.pid))
        child.communicate()
    assert facts.executable == executable
    assert facts.parent_pid == os.getpid()
    assert facts.owner
    assert facts.rustc_version == "1.83.0"
    assert facts.start_ticks == again.start_ticks
    assert facts.environ == {"OTEL_SERVICE_NAME": "users", "OTEL_RESOURCE_ATTRIBUTES": "a=b=c"}
    with pytest.raises(TargetError, match=str(child.pid)):
        read_process(Pid(child.pid))


def test_the_host_is_read() -> None:
    host = read_host()
    assert (host.name, host.machine) == (platform.node(), platform.machine())
    assert host.boot_id
    assert (
        make_resource(Settings(), read_process(Pid(os.getpid())), host).attributes["process.pid"]
        == os.getpid()
    )
