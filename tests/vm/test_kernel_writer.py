"""The kernel writer, where a kernel allows it: Debian's 6.1 in a virtual machine.

    python -m pytest tests/vm

One machine for all: it runs the tests in in_guest.py, and each of them is a test here.
"""

from __future__ import annotations

import os
import sys
from xml.etree import ElementTree

import pytest

from tests.support.services import ROOT, build
from tests.vm import machine

GUEST_TESTS = "tests/vm/in_guest.py"
# Computation is 10 to 15 times slower there, and the host may be busy: all takes 5 minutes on an idle one.
PATIENCE = "15"
TIMEOUT = 1100.0
OPTIONS = ("--timeout=300", "--junitxml=/mnt/share/results.xml")

NAMES = (
    "test_kernel_is_another_one",
    "test_thousand_requests_are_exact_by_the_kernel_writer",
    "test_stop_writer_on_this_kernel",
    "test_inline_probes_on_this_kernel[run]",
    "test_inline_probes_on_this_kernel[attach]",
    "test_chain_with_inline_probes_on_this_kernel",
    "test_agent_killed[kernel]",
    "test_agent_killed[stop]",
)

pytestmark = pytest.mark.timeout(TIMEOUT + 60)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each test in the machine: empty if it passed."""
    share = tmp_path_factory.mktemp("share")
    job = machine.Job(
        [sys.executable, "-m", "pytest", GUEST_TESTS, "-v", "--durations=0", *OPTIONS],
        directory=ROOT,
        environment={
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SPANWELD_TEST_BINARIES": str(build("release")),
            "SPANWELD_TEST_PATIENCE": PATIENCE,
        },
        share=share,
        timeout=TIMEOUT,
    )
    said = share / "said"
    try:
        with said.open("wb") as file:
            machine.run(job, machine.find_kernel("6.1"), stdout=file, stderr=file)
    except machine.MachineError as error:
        error.add_note(f"The last it said:\n{said.read_text(errors='replace')[-8000:]}")
        raise
    report = share / "results.xml"
    assert report.exists(), said.read_text(errors="replace")
    return {case.get("name", ""): _trouble(case) for case in ElementTree.parse(report).iter("testcase")}


def _trouble(case: ElementTree.Element) -> str:
    troubles = [child for child in case if child.tag in ("failure", "error", "skipped")]
    return "\n".join(f"{child.tag}: {child.get('message')}\n{child.text or ''}" for child in troubles)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_in_guest(name: str, results: dict[str, str]) -> None:
    assert results.pop(name, "it did not run") == ""


@pytest.mark.slow
def test_nothing_else_ran_in_guest(results: dict[str, str]) -> None:
    assert results == {}


def test_names_are_those_of_the_guest() -> None:
    text = (ROOT / GUEST_TESTS).read_text()
    assert all(f"def {name.partition('[')[0]}(" in text for name in NAMES)
