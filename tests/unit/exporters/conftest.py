"""What the exporters' tests share: messages that can be waited for, and a receiver."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.otlp_receiver import OtlpReceiver
from tests.unit.exporters.support import Messages


@pytest.fixture
def messages() -> Messages:
    return Messages()


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith("spanweld-")]
    for thread in left:
        thread.join(5.0)
    assert not [thread.name for thread in left if thread.is_alive()]
