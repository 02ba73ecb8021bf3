"""Requests that do not end, while agents come and go."""

from __future__ import annotations

import http.client
import threading
from dataclasses import dataclass
from types import TracebackType

from tests.support.client import TIMEOUT, split_address
from tests.support.services import PATIENCE


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, again and again; ``{n}`` in the target becomes a number that is never the same."""

    target: str
    method: str = "GET"
    body: bytes | None = None
    status: int = 200


class SteadyLoad:
    """Sends requests over keep-alive connections for the time of a ``with`` block.

    A connection that breaks is a failure as any other, so a service that closes one by itself must
    not be asked to.
    """

    def __init__(self, address: str, request: Request, connections: int = 8) -> None:
        self._address = split_address(address)
        self._request = request
        self._changed = threading.Condition()
        self._stopping = False
        self._next_number = 1
        self._answered: set[int] = set()
        self._failures: list[str] = []
        self._threads = [threading.Thread(target=self._work) for _ in range(connections)]

    def __enter__(self) -> SteadyLoad:
        for thread in self._threads:
            thread.start()
        self.wait_for_more(len(self._threads))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def next_number(self) -> int:
        """The least number of which no request was sent yet."""
        with self._changed:
            return self._next_number

    @property
    def answered(self) -> set[int]:
        """Numbers of the requests that were answered as expected."""
        with self._changed:
            return set(self._answered)

    @property
    def failures(self) -> list[str]:
        """What came instead, of each request that was not."""
        with self._changed:
            return list(self._failures)

    def wait_for_more(self, count: int, timeout: float = 60.0) -> None:
        """Returns when so many requests more were answered, and fails at the first failure."""
        with self._changed:
            due = len(self._answered) + count
            reached = self._changed.wait_for(
                lambda: self._failures or len(self._answered) >= due, timeout * PATIENCE
            )
            assert not self._failures, self._failures
            assert reached, f"no {count} requests were answered in {timeout} s"

    def stop(self) -> None:
        """Ends the load; every request under way is answered first."""
        with self._changed:
            self._stopping = True
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT * PATIENCE)
        while not self._stopping:
            with self._changed:
                number = self._next_number
                self._next_number += 1
            failure = self._send(connection, number)
            with self._changed:
                if failure:
                    self._failures.append(failure)
                else:
                    self._answered.add(number)
                self._changed.notify_all()
        connection.close()

    def _send(self, connection: http.client.HTTPConnection, number: int) -> str:
        target = self._request.target.replace("{n}", str(number))
        try:
            connection.request(self._request.method, target, self._request.body)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return f"{target}: {error!r}"
        return "" if response.status == self._request.status else f"{target}: status {response.status}"


USERS = Request("/api/users/{n}", "POST", b'{"name": "somebody"}', 201)
"""What ``users`` is sent."""
