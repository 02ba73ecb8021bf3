"""The `lab` service in every build profile: what is found in it, and that its spans are joined.

Each profile is a build of everything that the service uses: minutes each, kept in cargo's target folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from spanweld.commands.inspect import Verdict, make_report
from spanweld.image import Language
from spanweld.probes.declaration import Place
from tests.support import services
from tests.support.profiles import PROFILES, Profile
from tests.support.traced import How, Traced
from tests.support.traces import assert_child
from tools.check_stripped import Outcome, compare, strip

pytestmark = [pytest.mark.slow]

CASES: tuple[Profile | str, ...] = ("debug", "release", *PROFILES)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: getattr(case, "name", case))
def executable(request: pytest.FixtureRequest) -> Path:
    """The service; built first where it is missing."""
    case = request.param
    return case.build("lab") if isinstance(case, Profile) else services.binary("lab", case)


def test_everything_is_found(executable: Path) -> None:
    report = make_report(executable)
    assert report.plan.facts.language is Language.RUST
    assert report.plan.sdk_versions == ("0.31.0",)
    assert report.plan.facts.task_id is not None, report.plan.facts.task_id_reason
    assert report.plan.facts.task_id.confirmed
    for plan in report.plan.probes:
        assert plan.reason is None
        assert bool(plan.points) == (plan.probe.place not in (Place.TRACEPOINT, Place.SOCKETS))
    assert (report.verdict, report.verdict_reason) == (Verdict.JOINED, "by tokio task")


def test_without_symbols_nothing_is_found_wrongly(executable: Path, tmp_path: Path) -> None:
    findings = compare(executable, strip(executable, tmp_path / "stripped"))
    outcomes = {finding.name: finding.outcome for finding in findings}
    if outcomes["build_recording_span"] is Outcome.RIGHT:
        del outcomes[
            "on_end"
        ]  # nobody looks for processors then; one that panics reads nothing to be known by
    assert Outcome.WRONG not in outcomes.values(), findings


@pytest.mark.root
@pytest.mark.parametrize("how", get_args(How))
def test_manual_spans_are_joined(executable: Path, how: How) -> None:
    with Traced("lab", executable=executable, how=how) as traced:
        for path in ("nested", "in-span"):
            seen = traced.see(f"/{path}/{{n}}", "root", "child", "grandchild")
            assert_child(seen.manual["root"], seen.server)
            assert_child(seen.manual["child"], seen.manual["root"])
            assert_child(seen.manual["grandchild"], seen.manual["child"])
        seen = traced.see("/roots/{n}", "a", "b", "c")
        for root in seen.manual.values():
            assert_child(root, seen.server)
        seen = traced.see("/ended-elsewhere/{n}", "root", "after")
        assert_child(seen.manual["root"], seen.server)
        assert_child(seen.manual["after"], seen.server)
        for path in ("drop", "status"):
            seen = traced.see(f"/{path}/{{n}}", "root")
            assert_child(seen.manual["root"], seen.server)
