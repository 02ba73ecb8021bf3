"""Starts a service that waits, before it is executed, until everything is attached."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanweld.errors import TargetError, UsageError
from spanweld.model import Pid
from spanweld.process.users import User

# By what execve(2) says; that the file is there and is an executable was seen before.
_REMEDIES = {
    errno.ENOENT: "the dynamic loader that it names is not here: `readelf -l` shows it",
    errno.EACCES: "who it runs as (`--user`) may not execute it: look at the file and the folders above it",
    errno.ETXTBSY: "somebody has it open for writing: wait until it is built",
}


@dataclass(slots=True)
class Held:
    """A child process that has everything of the service but its program.

    ``release`` lets it execute the program; closing the agent instead ends it.
    """

    pid: Pid
    _gate: int
    _failure: int

    def release(self) -> None:
        """Executes the program; TargetError if the kernel refuses to."""
        os.write(self._gate, b"!")
        os.close(self._gate)
        # Closed by a successful exec, else it carries the error number.
        number = os.read(self._failure, 16)
        os.close(self._failure)
        if number:
            os.waitpid(self.pid, 0)
            reason = os.strerror(int(number))
            raise TargetError(f"the service cannot be started: {reason}", _REMEDIES.get(int(number), ""))

    def abandon(self) -> None:
        """Ends the child without executing anything."""
        with contextlib.suppress(OSError):
            os.close(self._gate)
        with contextlib.suppress(OSError):
            os.close(self._failure)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def find_program(name: str, environ: Mapping[str, str]) -> Path:
    """The executable that a shell would start; UsageError if there is none."""
    found = shutil.which(name, path=environ.get("PATH", os.defpath))
    if found:
        return Path(found).resolve()
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"{name} is a folder", "name the service's executable")
    if path.exists():
        raise UsageError(f"{name} is not executable", f"chmod +x {name}")
    raise UsageError(f"there is no program {name}", "name the service's executable, after --")


def launch(
    program: Path,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    user: User | None,
    blocked_before: Iterable[signal.Signals],
) -> Held:
    """Forks a child that waits. ``arguments`` begins with the program's own name.

    ``blocked_before`` is the signal mask that the service starts with. The child stays in the
    agent's process group, so that a terminal's signals reach it as they would without the agent.
    """
    gate_read, gate_write = os.pipe()
    failure_read, failure_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(
            program=program,
            arguments=arguments,
            environ=environ,
            user=user,
            blocked=blocked_before,
            pipes=(gate_read, gate_write, failure_write),
        )
    os.close(gate_read)
    os.close(failure_write)
    return Held(Pid(pid), gate_write, failure_read)


def exit_code_of(status: int) -> int:
    """A wait status as a shell shows it: the exit code, or 128 + the signal's number."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _child(
    *,
    program: Path,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    user: User | None,
    blocked: Iterable[signal.Signals],
    pipes: tuple[int, int, int],
) -> None:
    gate, gate_write, failure = pipes
    code = 127
    try:
        os.close(gate_write)
        if not os.read(gate, 1):
            os._exit(0)
        # Python ignores these; the service must find the defaults.
        for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if user is not None:
            os.setgroups(user.groups)
            os.setgid(user.gid)
            os.setuid(user.uid)
        os.execve(program, list(arguments), dict(environ))
    except OSError as error:
        os.write(failure, str(error.errno).encode())
    finally:
        os._exit(code)
