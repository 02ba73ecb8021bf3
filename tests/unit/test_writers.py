"""Which writer is taken."""

from __future__ import annotations

import pytest

from spanweld.errors import HostError
from spanweld.settings import ProbesMode, WriteMode
from spanweld.writers import choose, choose_instead


@pytest.mark.parametrize(
    ("kernel", "inline", "stop", "expected"),
    [
        ("", "", "", WriteMode.KERNEL),
        ("locked down", "", "", WriteMode.INLINE),
        ("locked down", "no patcher", "", WriteMode.STOP),
        ("locked down", "no patcher", "no tracer", WriteMode.OFF),
    ],
)
def test_auto_takes_the_first_that_works(kernel: str, inline: str, stop: str, expected: WriteMode) -> None:
    choice = choose(
        WriteMode.AUTO, ProbesMode.AUTO, kernel_refused=kernel, inline_refused=inline, stop_refused=stop
    )
    assert choice.mode is expected


def test_what_is_named_is_meant() -> None:
    assert choose(WriteMode.STOP, ProbesMode.AUTO).mode is WriteMode.STOP
    assert choose(WriteMode.OFF, ProbesMode.AUTO, kernel_refused="x").mode is WriteMode.OFF
    assert choose(WriteMode.AUTO, ProbesMode.INLINE).mode is WriteMode.INLINE
    assert choose(WriteMode.AUTO, ProbesMode.UPROBE, kernel_refused="x").mode is WriteMode.STOP


def test_one_target_that_cannot_be_patched_gets_the_next_mode() -> None:
    choice = choose(WriteMode.AUTO, ProbesMode.INLINE, kernel_refused="locked down")
    assert choose_instead(choice.mode, choice) is WriteMode.STOP
    choice = choose(WriteMode.AUTO, ProbesMode.INLINE, kernel_refused="locked down", stop_refused="no tracer")
    assert choose_instead(choice.mode, choice) is WriteMode.OFF


@pytest.mark.parametrize("write", [WriteMode.KERNEL, WriteMode.STOP, WriteMode.OFF])
def test_inline_probes_go_with_the_inline_writer_alone(write: WriteMode) -> None:
    with pytest.raises(HostError, match="--probes inline"):
        choose(write, ProbesMode.INLINE)
    with pytest.raises(HostError, match="--probes uprobe"):
        choose(WriteMode.INLINE, ProbesMode.UPROBE)


@pytest.mark.parametrize("mode", [WriteMode.KERNEL, WriteMode.STOP, WriteMode.INLINE])
def test_what_cannot_be_had_is_an_error_with_reason_and_remedy(mode: WriteMode) -> None:
    with pytest.raises(HostError) as caught:
        choose(mode, ProbesMode.AUTO, kernel_refused="one", inline_refused="two", stop_refused="three")
    assert mode.value in caught.value.message
    assert "auto" in caught.value.remedy
