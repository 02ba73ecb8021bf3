"""Connections whose agent goes away while they are in use."""

from __future__ import annotations

import os

import pytest

from tests.support.injecting import Injecting
from tests.support.pair import GET, LINE, Pair, post, upload

pytestmark = [pytest.mark.root]


@pytest.mark.parametrize("blocking", [True, False])
def test_killed_in_the_midst_of_an_upload(blocking: bool) -> None:
    body = os.urandom(1 << 20) * 100
    whole = post(body) + body
    with Injecting(os.getpid()) as agent, Pair() as pair:
        came = upload(
            pair,
            whole,
            blocking=blocking,
            after_part=lambda size: agent.kill() if size > len(whole) // 3 else None,
        )
        assert LINE.search(came, 0, 200)
        assert LINE.sub(b"", came, count=1) == whole
        pair.answer()
        for _ in range(3):
            pair.client.sendall(GET)
            pair.expect(GET)
            pair.answer()
        pair.end()
