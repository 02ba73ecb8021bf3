"""The services under test: built by cargo, started, spoken to, ended."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
READY = "listening on "
PATIENCE = float(os.environ.get("SPANWELD_TEST_PATIENCE", "1"))
"""By how much more time passes on this machine: an emulated one is slow."""
PROFILES = {"debug": "dev", "release": "release"}


def target_folder() -> Path:
    """Cargo's target folder: outside the checkout, so that builds are kept."""
    chosen = os.environ.get("CARGO_TARGET_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else cache / "spanweld/target"


@functools.cache
def build(profile: str) -> Path:
    """Builds every service in a profile (debug, release) once; returns the folder of the binaries."""
    folder = target_folder()
    subprocess.run(
        ["cargo", "build", "--locked", "--profile", PROFILES[profile]],
        cwd=ROOT / "services",
        env={**os.environ, "CARGO_TARGET_DIR": str(folder)},
        check=True,
    )
    return folder / profile


def binary(name: str, profile: str) -> Path:
    """The executable of a service."""
    return build(profile) / name


class Lines:
    """Collects a stream's lines in the background, and waits for some of them."""

    def __init__(self, stream: IO[str]) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def text(self) -> str:
        """All lines so far."""
        with self._changed:
            return "\n".join(self._lines)

    def wait_for(self, fragment: str, timeout: float = 30.0) -> str:
        """The first line that contains a fragment; AssertionError, with all lines, if none comes."""

        def found() -> str | None:
            return next((line for line in self._lines if fragment in line), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._ended, timeout * PATIENCE)
            line = found()
        assert line is not None, f"no line with {fragment!r} in:\n{self.text}"
        return line

    def join(self, timeout: float = 10.0) -> str:
        """All lines, once the stream has ended."""
        self._thread.join(timeout * PATIENCE)
        return self.text


class Service:
    """A service that runs by itself; ends with the ``with`` block."""

    def __init__(
        self, executable: Path, arguments: Sequence[str] = (), environ: Mapping[str, str] | None = None
    ) -> None:
        self.executable = executable
        self._arguments = list(arguments)
        self._environ = {**os.environ, "NO_PROXY": "127.0.0.1", "RUST_BACKTRACE": "0", **(environ or {})}

    def __enter__(self) -> Service:
        self.process = subprocess.Popen(
            [str(self.executable), *self._arguments],
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.output = Lines(self.process.stdout)
        self.address = self.output.wait_for(READY).removeprefix(READY)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    @property
    def url(self) -> str:
        """``http://address:port``"""
        return f"http://{self.address}"

    def stop(self) -> int:
        """Ends it as a supervisor would; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
