"""Which snapshot goes to disk next, and which messages need not wait for it.

A snapshot holds all that the ones before it hold. Where several wait for a slow disk, only the newest is
written. Liveness messages (pings, their answers, greetings, lists of members) promise nothing. They do not
wait, provided that the incarnation they carry is on disk.
"""

from __future__ import annotations

from gossipseg.core import effects, messages

_ALIVE = (
    messages.Hello,
    messages.HelloReply,
    messages.Ping,
    messages.Ack,
    messages.IndirectPing,
    messages.IndirectAck,
    messages.Sync,
    messages.SyncReply,
)


class Saves:
    """Counts the snapshots that were asked for against those that are written."""

    def __init__(self) -> None:
        self._asked = self._begun = self._taken = 0
        """Snapshots asked for, covered by a write that is done or under way, and handled in turn."""
        self._writing = False
        self.newest: effects.Snapshot | None = None
        """The last one that was asked for."""
        self._incarnation = -1
        """The incarnation in the newest attempted snapshot: a disk that refuses it must not silence the
        site."""

    def asked(self, snapshot: effects.Snapshot) -> None:
        """Count a Persist that was put into the queue."""
        self._asked, self.newest = self._asked + 1, snapshot

    def next(self, own: effects.Snapshot) -> effects.Snapshot | None:
        """Take a Persist's turn: the snapshot to write, or None where it is written already."""
        self._taken += 1
        if self._taken <= self._begun:
            return None
        self._begun, self._writing = self._asked, True
        return self.newest or own

    def done(self, snapshot: effects.Snapshot) -> None:
        """Note that the write has ended, or that the disk refused it."""
        self._incarnation, self._writing = snapshot.incarnation, False

    def overtakes(self, effect: effects.Effect, incarnation: int) -> bool:
        """Whether a message need not wait for the write under way. `incarnation`: the site's present one."""
        if self._taken == self._asked and not self._writing:
            return False
        body = effect.body if isinstance(effect, effects.Request | effects.Respond) else None
        return isinstance(body, _ALIVE) and incarnation <= self._incarnation
