"""Probes inside the target, as a user meets them: chosen, refused, killed, panicking."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spanweld.errors import TargetError
from tests.support.agent import COMMAND, attach
from tests.support.inline_churn import churn
from tests.support.services import Service, binary
from tests.support.traced import Traced
from tests.support.traces import assert_child

pytestmark = [pytest.mark.root]


@pytest.mark.slow
def test_in_and_out_under_load_with_agents_killed() -> None:
    churn(rounds=12, seed=7)


def test_uprobes_and_the_stop_writer_remain() -> None:
    with Traced("lab", options=("--probes", "uprobe")) as lab:
        assert "(write inline" not in lab.agent.messages.wait_for("ready (pid")
        seen = lab.see("/nested/{n}", "root", "child", "grandchild")
        assert_child(seen.manual["root"], seen.server)


def test_the_first_root_of_a_process_is_joined() -> None:
    with Traced("lab", options=("--probes", "inline")) as lab:
        assert "(write inline)" in lab.agent.messages.wait_for("ready (pid")
        seen = lab.see("/nested/{n}", "root", "child", "grandchild")
        assert_child(seen.manual["root"], seen.server)
        assert_child(seen.manual["child"], seen.manual["root"])


def test_a_service_with_a_seccomp_filter_keeps_uprobes() -> None:
    lab = binary("lab", "release")
    with (
        Service(Path(sys.executable), ["-c", FILTERED, str(lab)]) as service,
        attach(service.pid, "--write", "stop", "--export", "json:/dev/null") as agent,
    ):
        assert agent.stop() == 0
        with attach(service.pid, "--probes", "inline", "--export", "json:/dev/null") as chosen:
            said = chosen.messages.wait_for("ready (pid")
            assert ", not inline: " in said
            assert "seccomp filter" in said
            assert chosen.stop() == 0
        command = [*COMMAND, "attach", "--write", "inline", "--pid", str(service.pid)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == TargetError.exit_code
        assert "seccomp filter" in refused.stderr
        assert "--probes uprobe" in refused.stderr


# A filter that allows everything: that there is one is enough.
FILTERED = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
program = ctypes.create_string_buffer(struct.pack("<HBBI", 0x06, 0, 0, 0x7fff0000))
filter = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 1, ctypes.addressof(program)))
assert not libc.prctl(38, 1, 0, 0, 0)
assert not libc.prctl(22, 2, filter)
os.execv(sys.argv[1], sys.argv[1:])
"""
