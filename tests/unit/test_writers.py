"""Which writer is taken."""

from __future__ import annotations

import pytest

from spanweld.errors import HostError
from spanweld.settings import WriteMode
from spanweld.writers import choose


@pytest.mark.parametrize(
    ("kernel", "stop", "expected"),
    [
        ("", "", WriteMode.KERNEL),
        ("locked down", "", WriteMode.STOP),
        ("locked down", "no tracer", WriteMode.OFF),
    ],
)
def test_auto_takes_the_first_that_works(kernel: str, stop: str, expected: WriteMode) -> None:
    assert choose(WriteMode.AUTO, kernel, stop).mode is expected


def test_what_is_named_is_meant() -> None:
    assert choose(WriteMode.STOP, "", "").mode is WriteMode.STOP
    assert choose(WriteMode.OFF, "x", "y").mode is WriteMode.OFF


@pytest.mark.parametrize("mode", [WriteMode.KERNEL, WriteMode.STOP, WriteMode.INLINE])
def test_what_cannot_be_had_is_an_error_with_reason_and_remedy(mode: WriteMode) -> None:
    with pytest.raises(HostError) as caught:
        choose(mode, "because one", "because two")
    assert mode.value in caught.value.message
    assert "auto" in caught.value.remedy
