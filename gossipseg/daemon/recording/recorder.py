"""The last events of the core, kept for replay: what `gossipctl dump` writes.

A recording begins with the whole state of the core. Then comes one line a step: the time, the event, the
signatures made, and a digest of the effects. It holds no keys and no images. Of a worker's end it holds only
the fact, since the worker's last message may name a file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gossipseg import __version__
from gossipseg.core import effects, events
from gossipseg.core.node import NodeState
from gossipseg.daemon.recording.state_codec import FrozenError, freeze

log = logging.getLogger(__name__)
SCHEMA = 1
MAX_STEPS = 20_000
MAX_BYTES = 8 << 20
LEFT_OUT = "left out of recordings"


@dataclass(slots=True)
class _Segment:
    """The state at some step, and the steps from there on."""

    first: int
    start: str
    lines: list[str] = field(default_factory=list)
    size_bytes: int = 0
    """Size of the lines."""


class Recorder:
    """Two segments. The older is dropped when the newer is full, so at least half the bound is always
    there."""

    def __init__(
        self, sign: Callable[[bytes], bytes], *, max_steps: int = MAX_STEPS, max_bytes: int = MAX_BYTES
    ) -> None:
        """`sign` signs for the node, which must be given `Recorder.sign` in its place.

        `max_bytes` bounds the steps. If the state alone is larger than half of it, the steps may be as large
        as the state. Writing the state takes long in a large federation, so it must stay rare.
        """
        self.steps = 0
        self.problem = ""
        """Why there is no recording; "" if there is one."""
        self._sign = sign
        self._max_steps, self._max_bytes = max_steps // 2, max_bytes // 2
        self._segments: list[_Segment] = []
        self._signed: list[str] = []

    def sign(self, payload: bytes) -> bytes:
        """Sign, and remember the signature: signing the same payload again gives another one."""
        signature = self._sign(payload)
        self._signed.append(signature.hex())
        return signature

    def step(self, node: NodeState, event: events.Event, now: float) -> list[effects.Effect]:
        """Run node.step(event, now) and record it; an event that raises is recorded, too."""
        self._prepare(node)
        self._signed = []
        self.steps += 1
        done: list[effects.Effect] | None = None
        try:
            done = node.step(event, now)
            return done
        finally:
            self._write(event, now, done)

    def text(self, **about: Any) -> str:
        """The recording as JSON lines: a head with `about` and the state, then the steps."""
        segments = list(self._segments)
        head = {
            "schema": SCHEMA,
            "kind": "recording",
            **about,
            "version": __version__,
            "python": platform.python_version(),
            "first_step": segments[0].first if segments else 0,
            "problem": self.problem,
        }
        start = segments[0].start if segments else "null"
        first = json.dumps(head, separators=(",", ":"))[:-1] + f',"start":{start}}}'
        return "\n".join([first, *(line for s in segments for line in list(s.lines))]) + "\n"

    def _prepare(self, node: NodeState) -> None:
        """Begin a segment where the current one is full."""
        if self.problem or (self._segments and not self._full(self._segments[-1])):
            return
        try:
            start = json.dumps(freeze(node, sign=self.sign), separators=(",", ":"))
        except (FrozenError, RecursionError) as e:
            self._give_up(e)
            return
        self._segments = [*self._segments[-1:], _Segment(self.steps, start)]

    def _full(self, segment: _Segment) -> bool:
        most_bytes = max(self._max_bytes, len(segment.start))
        return len(segment.lines) >= self._max_steps or segment.size_bytes >= most_bytes

    def _write(self, event: events.Event, now: float, done: list[effects.Effect] | None) -> None:
        if self.problem:
            return
        line: dict[str, Any] = {"now": now}
        try:
            line["event"] = freeze(without_private(event))
        except (FrozenError, RecursionError) as e:
            self._give_up(e)
            return
        if self._signed:
            line["signed"] = self._signed
        line["effects"] = digest(done) if done is not None else None
        text = json.dumps(line, separators=(",", ":"))
        self._segments[-1].lines.append(text)
        self._segments[-1].size_bytes += len(text)

    def _give_up(self, error: Exception) -> None:
        """Stop recording: a recording helps, and must never stop the daemon."""
        self.problem, self._segments = f"the core cannot be recorded: {error}", []
        log.error("%s", self.problem)


def without_private(event: events.Event) -> events.Event:
    """The event without texts that may name a file of this site; the core does not read them."""
    if isinstance(event, events.WorkerLost):
        return dataclasses.replace(event, reason=LEFT_OUT)
    return event


def digest(done: list[effects.Effect]) -> str:
    """A digest of a step's effects: 16 hex digits."""
    return hashlib.blake2b(repr(done).encode(), digest_size=8).hexdigest()
