"""The command line: help, wrong calls, exit codes, and a fault of the agent's own."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from spanweld.commands import cli, main
from spanweld.commands.attach import each
from spanweld.errors import SpanweldError, TargetError

# The package offers the command of that name.
run_module = importlib.import_module("spanweld.commands.run")


def spanweld(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spanweld", *arguments],
        capture_output=True,
        text=True,
        env={**{k: os.environ[k] for k in ("PATH", "PYTHONPATH") if k in os.environ}, **environ},
        check=False,
    )


@pytest.mark.parametrize("command", ["run", "attach", "inspect", "doctor"])
def test_help_says_what_a_command_does(command: str) -> None:
    result = spanweld(command, "--help")
    assert result.returncode == 0
    assert "Usage:" in result.stdout
    assert set(cli.commands) == {"run", "attach", "inspect", "doctor"}


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (["run", "--", "no-such-program"], {}, "there is no program no-such-program"),
        (["run", "--", "/usr"], {}, "is a folder"),
        (["run", "--", "/etc/passwd"], {}, "chmod +x"),
        (["run", "--write", "fast", "--", "true"], {}, "--write"),
        (["run", "--user", "nobody-of-that-name", "--", "true"], {}, "there is no user"),
        (["attach"], {}, "--pid"),
        (["attach", "--pid", "1", "--exe", "x"], {}, "either"),
        (["run", "--", "true"], {"OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_TRACES_SAMPLER"),
        (["frobnicate"], {}, "frobnicate"),
        (["run", "--no-such-option", "--", "true"], {}, "--no-such-option"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_why(
    arguments: list[str], environ: dict[str, str], expected: str
) -> None:
    result = spanweld(*arguments, **environ)
    assert result.returncode == 2, result.stderr
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_a_fault_of_the_agent_leaves_the_service_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A fault of the agent's own cannot be had on demand.
    class Faulty:
        def __init__(self, *_: object) -> None:
            pass

        def open(self) -> None:
            pass

        def add(self, *_: object, **__: object) -> SimpleNamespace:
            return SimpleNamespace()

        def run(self, *_: object, **__: object) -> None:
            raise RuntimeError("a fault")

        def close(self) -> None:
            raise RuntimeError("another fault")

    monkeypatch.setattr(run_module, "Agent", Faulty)
    monkeypatch.setattr(run_module, "make_plan", lambda _: None)
    monkeypatch.setattr(run_module, "describe", lambda _: "ready")
    monkeypatch.setattr(
        sys, "argv", ["spanweld", "run", "--", "/bin/sh", "-c", "sleep 0.2; echo done; exit 7"]
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 7
    output = capfd.readouterr()
    assert output.out == "done\n"
    assert "goes on without being traced" in output.err
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_each_says_what_failed_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def do(number: int) -> int:
        if number % 2:
            raise TargetError(f"{number} failed", "a remedy")
        return number * 10

    assert each([1, 2, 3, 4], do) == {2: 20, 4: 40}
    assert capsys.readouterr().err.count("a remedy") == 2
    with pytest.raises(SpanweldError, match="3 failed"):
        each([1, 3], do)
