"""``run`` stands before a service as if it were not there: signals, exit codes, streams, environment."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.agent import COMMAND, run
from tests.support.client import get
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.plain import plain
from tests.support.remains import PINS, KernelObjects, tracer_processes, wait_until
from tests.support.services import READY, Lines, Service, binary
from tests.support.steady import USERS, SteadyLoad
from tests.support.traces import manual_spans, server_spans, wrong

pytestmark = pytest.mark.root

NOWHERE = ("--export", "json:/dev/null")
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}
LONGEST_END = 5.0
FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What agents under test start with."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SUDO_"))}
    return {**kept, "NO_PROXY": "127.0.0.1", **(more or {})}


class Plain:
    """``spanweld run -- plain`` with a standard input that the test writes to."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def __enter__(self) -> Plain:
        self.process = subprocess.Popen(
            [*COMMAND, "run", *NOWHERE, "--", str(plain())],
            env=environment(),
            stdin=self._read,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(self._read)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.output, self.messages = Lines(self.process.stdout), Lines(self.process.stderr)
        self.output.wait_for("waiting", 60)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            os.close(self._write)
        self.process.wait(20)

    def tell(self, line: str) -> None:
        """One line to its standard input."""
        os.write(self._write, line.encode() + b"\n")

    def signals(self) -> list[int]:
        """Those that it got until now."""
        return [int(line.split()[1]) for line in self.output.text.splitlines() if line.startswith("signal ")]


# Signals


def test_each_signal_is_passed_on_once() -> None:
    with Plain() as it:
        expected: list[int] = []
        for number in FORWARDED:
            if number is signal.SIGUSR1:
                continue
            it.process.send_signal(number)
            it.output.wait_for(f"signal {number:02}")
            expected.append(number)
        # A second one of the last would be there before this.
        it.process.send_signal(signal.SIGUSR1)
        it.output.wait_for(f"signal {signal.SIGUSR1:02}")
        assert it.signals() == [*expected, signal.SIGUSR1]
        it.tell("exit 0")
        assert it.process.wait(10) == 0
        assert it.signals() == [*expected, signal.SIGUSR1]


class Terminal:
    """A command in the foreground of a terminal of its own."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._text = b""
        self._changed = threading.Condition()
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                os.execvpe(command[0], list(command), dict(environ))
            finally:
                os._exit(127)
        self._closing, self._close = os.pipe()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._status: int | None = None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.close()

    def close(self) -> None:
        """As when a window is closed; a read under way would keep the terminal open."""
        if self._reader.is_alive():
            os.write(self._close, b"!")
            self._reader.join()
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def _read(self) -> None:
        while True:
            ready, _, _ = select.select([self.master, self._closing], [], [])
            if self._closing in ready:
                return
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the other side any more
                return
            with self._changed:
                self._text += data
                self._changed.notify_all()

    @property
    def text(self) -> str:
        """All that was printed, by whomever."""
        with self._changed:
            return self._text.decode(errors="replace")

    def wait_for(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """The first match in what was printed."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: re.search(pattern, self._text.decode(errors="replace"), re.MULTILINE), timeout
            )
        assert found, f"no {pattern!r} in:\n{self.text}"
        return found

    def type(self, text: str) -> None:
        """What a person would."""
        os.write(self.master, text.encode())

    def wait(self, timeout: float) -> int:
        """The exit code."""
        deadline = time.monotonic() + timeout
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
                break
            assert time.monotonic() < deadline, f"not ended within {timeout} s:\n{self.text}"
            time.sleep(0.01)
        self._reader.join(5)
        return os.waitstatus_to_exitcode(self._status)


@pytest.mark.parametrize(("key", "number"), [("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT)])
def test_key_of_the_terminal_reaches_the_service_once(key: str, number: signal.Signals) -> None:
    """The terminal sends it to agent and service; the agent must not send it again."""
    with Terminal([*COMMAND, "run", *NOWHERE, "--", str(plain())], environment()) as terminal:
        terminal.wait_for(r"ready \(pid ")
        terminal.wait_for(r"^waiting")
        for turn in range(1, 4):
            terminal.type(key)
            wait_until(lambda turn=turn: terminal.text.count(f"signal {number:02}") == turn, "it came")  # type: ignore[misc]
        # Everything that the agent has still to pass on goes before this.
        os.kill(terminal.pid, signal.SIGUSR2)
        terminal.wait_for(f"signal {signal.SIGUSR2:02}")
        assert terminal.text.count(f"signal {number:02}") == 3
        terminal.type("exit 7\n")
        assert terminal.wait(10) == 7


def test_size_of_the_terminal() -> None:
    """SIGWINCH, which the kernel sends to the whole foreground as well."""
    import fcntl
    import struct
    import termios

    with Terminal([*COMMAND, "run", *NOWHERE, "--", str(plain())], environment()) as terminal:
        terminal.wait_for(r"ready \(pid ")
        terminal.wait_for(r"^waiting")
        fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
        terminal.wait_for(f"signal {signal.SIGWINCH:02}")
        os.kill(terminal.pid, signal.SIGUSR2)
        terminal.wait_for(f"signal {signal.SIGUSR2:02}")
        assert terminal.text.count(f"signal {signal.SIGWINCH:02}") == 1
        terminal.type("exit 0\n")
        assert terminal.wait(10) == 0


@contextlib.contextmanager
def users_environment() -> Iterator[tuple[list[str], OtlpReceiver, dict[str, str]]]:
    """The command of ``users``, and a receiver for its spans and the agent's."""
    with OtlpReceiver() as receiver, Service(binary("store", "release")) as store:
        environ = environment({"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, **SOON})
        yield [str(binary("users", "release")), "--store", store.url], receiver, environ


def assert_all_flushed(receiver: OtlpReceiver, answered: set[int]) -> None:
    """Each answered request is there, joined, though agent and service were ended right after it."""
    spans = receiver.spans
    assert not wrong(spans)
    servers = {
        int(str(span.attributes["url.path"]).rpartition("/")[2]): (span.trace_id, span.span_id)
        for span in server_spans(spans)
    }
    roots = {
        int(str(span.attributes["request.number"])): (span.trace_id, span.parent_span_id)
        for span in manual_spans(spans)
        if span.name == "process_business_logic"
    }
    assert answered
    assert {number: roots.get(number) for number in answered} == {
        number: servers.get(number, "no server span") for number in answered
    }


def assert_gone(service: int, objects: KernelObjects) -> None:
    """Neither agent nor service left anything."""
    assert not Path(f"/proc/{service}").exists()
    assert not (PINS / str(service)).exists()
    assert not tracer_processes(service)
    wait_until(lambda: not objects.alive(), "the agent's BPF objects are gone")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_both_with_their_spans_flushed(number: signal.Signals) -> None:
    with users_environment() as (command, receiver, environ):
        with run(command, "--export", "otlp", environ=environ) as agent:
            service, objects = agent.service_pid, KernelObjects.of(agent.process.pid)
            with SteadyLoad(agent.service_address, USERS) as load:
                load.wait_for_more(100)
                load.stop()
            began = time.monotonic()
            assert agent.stop(number) == 0
            assert time.monotonic() - began < LONGEST_END
        assert_gone(service, objects)
        assert load.failures == []
        assert_all_flushed(receiver, load.answered)


def test_control_c_ends_both_with_their_spans_flushed() -> None:
    with (
        users_environment() as (command, receiver, environ),
        Terminal([*COMMAND, "run", "--export", "otlp", "--", *command], environ) as terminal,
    ):
        service = int(terminal.wait_for(r"ready \(pid (\d+)")[1])
        address = terminal.wait_for(READY + r"(\S+)\r")[1]
        objects = KernelObjects.of(terminal.pid)
        with SteadyLoad(address, USERS) as load:
            load.wait_for_more(100)
            load.stop()
        began = time.monotonic()
        terminal.type("\x03")
        assert terminal.wait(10) == 0
        assert time.monotonic() - began < LONGEST_END
        assert_gone(service, objects)
        assert load.failures == []
        assert_all_flushed(receiver, load.answered)


def test_terminal_that_is_closed_ends_both() -> None:
    """SIGHUP goes to the session's leader, here the agent; its messages have nowhere to go."""
    command = [*COMMAND, "run", *NOWHERE, "--", str(binary("minimal", "release"))]
    with Terminal(command, environment()) as terminal:
        service = int(terminal.wait_for(r"ready \(pid (\d+)")[1])
        terminal.wait_for(READY)
        terminal.close()
        assert terminal.wait(LONGEST_END) == 128 + signal.SIGHUP
        assert not Path(f"/proc/{service}").exists()
        assert not (PINS / str(service)).exists()


# Exit codes


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exit_code_is_the_services(code: int) -> None:
    with Plain() as it:
        it.tell(f"exit {code}")
        assert it.process.wait(10) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_exit_code_of_a_service_that_a_signal_ended(number: signal.Signals) -> None:
    with Plain() as it:
        it.tell(f"kill {int(number)}")
        assert it.process.wait(10) == 128 + number
        assert f"the service was ended by {number.name}" in it.messages.join()


def test_service_that_ends_at_once() -> None:
    """Before the ready line can have been printed."""
    for _ in range(5):
        done = subprocess.run(
            [*COMMAND, "run", *NOWHERE, "--", str(plain()), "cat"],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"out ")


# What the service gets


def test_streams_are_the_services() -> None:
    done = subprocess.run(
        [*COMMAND, "run", *NOWHERE, "--", str(plain()), "cat"],
        env=environment(),
        input="some\ninput\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "out some\ninput\n"
    own = [line for line in done.stderr.splitlines(keepends=True) if not line.startswith("spanweld: ")]
    assert "".join(own) == "err some\ninput\n"


def shown(command: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None) -> list[str]:
    """What ``plain show`` says of itself, started by ``command``."""
    done = subprocess.run(
        [*command, str(plain()), "show", "--like", "these", "--", "and this"],
        env=environment({"A_VARIABLE": "with a\nline end", "OTEL_SERVICE_NAME": "shown", "EMPTY": ""}),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=prepare,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


def blocked_and_ignored() -> None:
    """What a supervisor may have left."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGTERM])
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.nice(3)
    os.umask(0o027)


@pytest.mark.parametrize("prepare", [None, blocked_and_ignored])
@pytest.mark.parametrize("write", ["auto", "off"])
def test_service_starts_as_it_would_without_the_agent(
    write: str, prepare: Callable[[], None] | None, tmp_path: Path
) -> None:
    """Arguments, variables, folder, ids, signals, limits, priority, descriptors."""
    bare = shown([], tmp_path, prepare)
    traced = shown([*COMMAND, "run", *NOWHERE, "--write", write, "--"], tmp_path, prepare)
    assert traced == bare
    assert f"folder {tmp_path}" in bare
    assert f"descriptors {[0, 1, 2, 3]}" in bare


def test_service_is_found_on_the_path(tmp_path: Path) -> None:
    shutil.copy(plain(), tmp_path / "my-service")
    done = subprocess.run(
        [*COMMAND, "run", *NOWHERE, "my-service", "cat"],
        env=environment({"PATH": f"{tmp_path}:{os.environ['PATH']}"}),
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "out "


def test_executable_that_the_kernel_refuses(tmp_path: Path) -> None:
    """Its dynamic loader is not there: execve says ENOENT of a file that exists."""
    program = tmp_path / "plain"
    code = plain().read_bytes()
    loader = b"/lib64/ld-linux-x86-64.so.2\0"
    assert code.count(loader) >= 1
    program.write_bytes(code.replace(loader, loader.replace(b"lib64", b"lib65")))
    program.chmod(0o755)
    done = subprocess.run(
        [*COMMAND, "run", *NOWHERE, "--", str(program)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 5
    assert "the service cannot be started: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert "readelf" in done.stderr


def test_executable_that_its_user_may_not_execute(tmp_path: Path) -> None:
    program = tmp_path / "plain"
    shutil.copy(plain(), program)
    program.chmod(0o700)
    done = subprocess.run(
        [*COMMAND, "run", *NOWHERE, "--user", "nobody", "--", str(program)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 5
    assert "the service cannot be started: Permission denied" in done.stderr
    assert "--user" in done.stderr


def test_nothing_of_the_service_runs_before_the_probes_are_on() -> None:
    """Its first request is traced, however soon it comes."""
    with OtlpReceiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, **SOON}
        for turn in range(3):
            with run([str(binary("lab", "release"))], "--export", "otlp", environ=environ) as agent:
                assert get(agent.service_address, f"/nested/{turn}").status == 200
                assert agent.stop() == 0
        roots = [span for span in manual_spans(receiver.spans) if span.name == "root"]
        servers = {(span.trace_id, span.span_id) for span in server_spans(receiver.spans)}
        assert len(roots) == len(servers) == 3
        assert {(span.trace_id, span.parent_span_id) for span in roots} == servers


# As whom


def ids_of(lines: Sequence[str]) -> dict[str, list[int]]:
    """Uid, Gid and Groups as ``plain show`` has them from its status."""
    found = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name in ("Uid", "Gid", "Groups"):
            found[name] = sorted({int(word) for word in value.split()})
    return found


def show_as(*options: str, environ: Mapping[str, str] | None = None) -> list[str]:
    """What ``plain show`` says under ``run`` with these options."""
    done = subprocess.run(
        [*COMMAND, "run", *NOWHERE, *options, "--", str(plain()), "show"],
        env=environment(environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def somebody() -> Iterator[tuple[str, int, int, int]]:
    """A user with a home and a second group: name, uid, gid, gid of the second group."""
    name, uid, gid, second = f"spanweld{os.getpid() % 10000}", 54321, 54321, 54322
    subprocess.run(["groupadd", "--gid", str(gid), name], check=True)
    subprocess.run(["groupadd", "--gid", str(second), f"{name}x"], check=True)
    try:
        subprocess.run(
            [
                "useradd",
                "--uid",
                str(uid),
                "--gid",
                str(gid),
                "--groups",
                f"{name}x",
                "--no-create-home",
                name,
            ],
            check=True,
        )
        try:
            yield name, uid, gid, second
        finally:
            subprocess.run(["userdel", name], check=True)
    finally:
        for group in (name, f"{name}x"):
            subprocess.run(["groupdel", group], check=False, stderr=subprocess.DEVNULL)


def test_service_runs_as_who_called_sudo(somebody: tuple[str, int, int, int]) -> None:
    name, uid, gid, second = somebody
    lines = show_as(environ={"SUDO_UID": str(uid), "SUDO_GID": str(gid), "SUDO_USER": name})
    assert ids_of(lines) == {"Uid": [uid], "Gid": [gid], "Groups": [gid, second]}
    assert {f"variable HOME=/home/{name}", f"variable USER={name}", f"variable LOGNAME={name}"} <= set(lines)


def test_service_runs_as_root_where_root_called_sudo() -> None:
    lines = show_as(environ={"SUDO_UID": "0", "SUDO_GID": "0", "SUDO_USER": "root"})
    assert ids_of(lines)["Uid"] == [0]


def test_user_option_is_stronger_than_sudo(somebody: tuple[str, int, int, int]) -> None:
    name, uid, gid, _ = somebody
    environ = {"SUDO_UID": str(uid), "SUDO_GID": str(gid), "SUDO_USER": name}
    assert ids_of(show_as("--user", "root", environ=environ))["Uid"] == [0]


@pytest.mark.parametrize("by", ["option", "variable"])
def test_user_by_name(by: str) -> None:
    lines = show_as("--user", "nobody") if by == "option" else show_as(environ={"SPANWELD_USER": "nobody"})
    assert ids_of(lines) == {"Uid": [65534], "Gid": [65534], "Groups": [65534]}
    assert "variable USER=nobody" in lines


def test_user_by_numbers_that_nobody_has() -> None:
    lines = show_as("--user", "43210:43211")
    assert ids_of(lines) == {"Uid": [43210], "Gid": [43211], "Groups": [43211]}
    assert "variable HOME=/" in lines


@pytest.mark.parametrize("user", ["no-such-user", "nobody:no-such-group", ":1", "1:"])
def test_user_that_does_not_exist(user: str) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "--user", user, "--", str(plain()), "show"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("spanweld: ")
    assert len(done.stderr.splitlines()) == 2  # what is wrong, and what to do


def test_service_of_another_user_is_traced_and_adopted() -> None:
    """The tracer must be allowed to, and the service must be able to write where root does not."""
    with OtlpReceiver() as receiver, Service(binary("store", "release")) as store:
        copy = Path(plain()).parent / "users"
        shutil.copy(binary("users", "release"), copy)
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, **SOON}
        command = [str(copy), "--store", store.url]
        with run(command, "--export", "otlp", "--user", "nobody", environ=environ) as agent:
            status = Path(f"/proc/{agent.service_pid}/status").read_text()
            assert "Uid:\t65534\t65534\t65534\t65534" in status
            with SteadyLoad(agent.service_address, USERS) as load:
                load.wait_for_more(20)
            assert agent.stop() == 0
        assert_all_flushed(receiver, load.answered)
