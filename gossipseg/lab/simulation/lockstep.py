"""Work that is held between its steps, while the virtual clock goes on.

It has a thread of its own, which runs only while `advance` waits for it: at any moment one of the two runs,
so that every run is the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")
Pause = Callable[[], None]


class Abandoned(BaseException):
    """Nobody waits for the work any more: it ends where it is held."""


class Lockstep(Generic[_T]):
    """Runs `work(pause)`; the work calls `pause` where it may be held."""

    def __init__(self, work: Callable[[Pause], _T]) -> None:
        self._work = work
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._over = self._abandoned = False
        self._result: list[_T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="lockstep", daemon=True)
        self._thread.start()

    def advance(self) -> bool:
        """Let the work run until it pauses; True: it is done. Raises what the work raised."""
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            raise self._error
        return self._over

    @property
    def result(self) -> _T:
        """What the work returned, once `advance` has said that it is done."""
        return self._result[0]

    def abandon(self) -> None:
        """End the work where it is held; does nothing after its end."""
        if not self._over:
            self._abandoned = True
            self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._abandoned:
                self._result.append(self._work(self._pause))
        except Abandoned:
            pass
        except BaseException as e:
            self._error = e
        self._over = True
        self._stopped.release()

    def _pause(self) -> None:
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise Abandoned
