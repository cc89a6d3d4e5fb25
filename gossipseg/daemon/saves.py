"""Which snapshot goes to disk next, and what need not wait for it.

A snapshot holds all that the ones before it hold: where several wait for a slow disk, the newest is written
in place of all of them. What keeps a site alive in the eyes of others (pings, their answers, greetings,
lists of members) binds it to nothing and does not wait, provided that the incarnation it speaks under is on
disk.
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
        """Asked for, covered by what was written or is being written, and whose turn has come."""
        self._writing = False
        self._newest: effects.Snapshot | None = None
        self._incarnation = -1
        """The newest that was tried to be written: a disk that refuses it must not silence the site."""

    def asked(self, snapshot: effects.Snapshot) -> None:
        """A Persist was put into the queue."""
        self._asked, self._newest = self._asked + 1, snapshot

    def next(self, own: effects.Snapshot) -> effects.Snapshot | None:
        """The turn of a Persist with this snapshot: what to write, or None where it is written already."""
        self._taken += 1
        if self._taken <= self._begun:
            return None
        self._begun, self._writing = self._asked, True
        return self._newest or own

    def done(self, snapshot: effects.Snapshot) -> None:
        """It is on disk, or the disk refused it."""
        self._incarnation, self._writing = snapshot.incarnation, False

    def overtakes(self, effect: effects.Effect, incarnation: int) -> bool:
        """Whether it need not wait for what is being written. `incarnation`: the site's, now."""
        if self._taken == self._asked and not self._writing:
            return False
        body = effect.body if isinstance(effect, effects.Request | effects.Respond) else None
        return isinstance(body, _ALIVE) and incarnation <= self._incarnation
