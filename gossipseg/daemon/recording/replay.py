"""Replays a recording of `gossipctl dump`: the same core, the same events, the same effects.

`python -m gossipseg.daemon.recording.replay FILE` says where this version of the core departs from the
recording.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossipseg.core import effects, events
from gossipseg.core.node import NodeState
from gossipseg.daemon.recording.recorder import SCHEMA, digest
from gossipseg.daemon.recording.state_codec import FrozenError, thaw
from gossipseg.errors import EXIT_FAILED, EXIT_OK, DataError, GossipsegError


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One step of the replay."""

    number: int
    """Counted from the start of the daemon."""
    now: float
    """Monotonic seconds at the site."""
    event: events.Event
    effects: tuple[effects.Effect, ...]
    error: Exception | None
    """What the core raised."""
    same: bool
    """Whether the effects (or the error) are those that were recorded."""


@dataclass(slots=True)
class Replay:
    """A node in the state at the recording's beginning. Iterate over `steps()` to continue from there."""

    head: dict[str, Any]
    node: NodeState
    _lines: list[str]
    _signatures: _Signatures

    def steps(self) -> Iterator[RecordedStep]:
        """Replay step by step; `node` can be inspected in between. Raises DataError for an unreadable
        line."""
        for i, text in enumerate(self._lines):
            number = self.head["first_step"] + i
            try:
                line = json.loads(text)
                event, now, recorded = thaw(line["event"]), float(line["now"]), line["effects"]
            except (ValueError, KeyError, TypeError, RecursionError) as e:
                raise _bad(f"step {number} cannot be read: {e!r}") from e
            self._signatures.next = [bytes.fromhex(s) for s in line.get("signed", ())]
            done: list[effects.Effect] = []
            error = None
            try:
                done = self.node.step(event, now)
            except Exception as e:  # what the core raises is part of what is replayed
                error = e
            same = recorded is None if error is not None else digest(done) == recorded
            yield RecordedStep(number, now, event, tuple(done), error, same and not self._signatures.next)


class _Signatures:
    """Gives the recorded signatures in their order."""

    def __init__(self) -> None:
        self.next: list[bytes] = []

    def sign(self, payload: bytes) -> bytes:
        return self.next.pop(0) if self.next else b"not recorded"


def load(text: str) -> Replay:
    """Raises DataError where the text is no recording, or holds none."""
    first, _, rest = text.partition("\n")
    try:
        head = json.loads(first)
        if head["schema"] != SCHEMA or head["kind"] != "recording":
            raise _bad("is no recording of a schema that this version reads")
        if head["problem"] or head["start"] is None:
            raise _bad(f"holds no steps: {head['problem'] or 'none were made'}")
        signatures = _Signatures()
        node = thaw(head.pop("start"), sign=signatures.sign)
    except (ValueError, KeyError, TypeError, FrozenError, RecursionError) as e:
        raise _bad(f"is no recording: {e!r}") from e
    if not isinstance(node, NodeState):
        raise _bad("does not begin with the state of a node")
    return Replay(head, node, [line for line in rest.split("\n") if line], signatures)


def _bad(problem: str) -> DataError:
    return DataError(
        problem, remedy="Use a file that `gossipctl dump` wrote, with the version that wrote it."
    )


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as e:
        raise _bad(f"{file} cannot be read: {e}") from e


def main(argv: list[str] | None = None) -> int:
    """Replay a file; exit code 1 where the effects differ."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1:
        print("usage: python -m gossipseg.daemon.recording.replay FILE", file=sys.stderr)
        return 2
    try:
        replayed = load(_read(Path(arguments[0])))
        count = 0
        for step in replayed.steps():
            count += 1
            if not step.same:
                print(f"step {step.number} at {step.now:.3f} s differs: {step.event}")
                print("\n".join(f"  {effect}" for effect in step.effects) or f"  {step.error!r}")
                return EXIT_FAILED
    except GossipsegError as e:
        print(e, file=sys.stderr)
        return e.exit_code
    print(f"{count} steps of {replayed.head.get('site', 'a site')}: every effect is the same")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
