from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanweld.errors import TargetError
from spanweld.model import Pid
from spanweld.process.find import Stat, find_by_exe, find_by_pid, read_stat, tracer_of


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = tmp_path / "odd ) name"
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, "60"])
    yield process
    process.kill()
    process.wait()


def test_stat_of_a_name_with_spaces_and_parentheses() -> None:
    text = "12 (a) R (b ) c) S 1 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 20"
    assert Stat.parse(text) == Stat("a) R (b ) c", "S", Pid(1), 4194560, 777)


def test_process_by_pid(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    process = find_by_pid(Pid(sleeper.pid))
    assert process.name == "odd ) name"
    assert process.uid == os.getuid()
    assert process.exe == str(tmp_path / "odd ) name")
    assert not process.is_exe_deleted
    assert process.start_ticks > 0
    assert process.image_path.read_bytes() == Path("/bin/sleep").read_bytes()
    assert process.still_runs
    assert tracer_of(process.pid) is None


def test_deleted_executable_can_still_be_opened(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "odd ) name").unlink()
    process = find_by_pid(Pid(sleeper.pid))
    assert process.exe == str(tmp_path / "odd ) name")
    assert process.is_exe_deleted
    assert process.image_path.read_bytes() == Path("/bin/sleep").read_bytes()


def test_process_that_ended_does_not_still_run(sleeper: subprocess.Popen[bytes]) -> None:
    process = find_by_pid(Pid(sleeper.pid))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not process.still_runs
    with pytest.raises(TargetError, match="has ended and waits"):
        find_by_pid(process.pid)
    sleeper.wait()
    assert not process.still_runs
    with pytest.raises(TargetError, match="there is no process") as raised:
        find_by_pid(process.pid)
    assert raised.value.remedy


def test_processes_by_glob(sleeper: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert [p.pid for p in find_by_exe("odd ) n*")] == [sleeper.pid]
    assert [p.pid for p in find_by_exe(f"{tmp_path}/odd*")] == [sleeper.pid]
    with pytest.raises(TargetError, match="no process runs"):
        find_by_exe(f"{tmp_path}/even*")


def test_own_process_is_not_found_by_glob() -> None:
    own = find_by_pid(Pid(os.getpid()))
    with contextlib.suppress(TargetError):  # no other process runs this interpreter
        assert own.pid not in [p.pid for p in find_by_exe(own.exe)]


def test_thread_id_is_refused_with_its_process() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        with pytest.raises(TargetError, match=f"thread of process {os.getpid()}") as raised:
            find_by_pid(Pid(thread.native_id or 0))
        assert f"--pid {os.getpid()}" in raised.value.remedy
    finally:
        end.set()
        thread.join()


def test_kernel_thread_is_refused() -> None:
    stat = read_stat(Pid(2))
    if stat is None or stat.name != "kthreadd":
        pytest.skip("no kernel threads are seen in this pid namespace")
    with pytest.raises(TargetError, match="thread of the kernel"):
        find_by_pid(Pid(2))


def test_start_time_grows() -> None:
    first = subprocess.Popen(["/bin/sleep", "60"])
    time.sleep(0.05)  # more than one tick of the clock
    second = subprocess.Popen(["/bin/sleep", "60"])
    try:
        ticks = [find_by_pid(Pid(p.pid)).start_ticks for p in (first, second)]
        assert ticks[0] < ticks[1]
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
