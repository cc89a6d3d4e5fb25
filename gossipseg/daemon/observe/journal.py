"""Writes one note to every place where people look: event log, audit log, log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gossipseg.daemon.health.disk import DiskWatch
from gossipseg.daemon.observe.audit import Audit
from gossipseg.daemon.observe.status_view import WorkerView
from gossipseg.errors import LocalError
from gossipseg.store import EventLog

log = logging.getLogger(__name__)

_WARN = {"member_suspect", "member_dead", "peer_refused", "transfer_failed", "model_broken", "worker_lost",
         "visit_refused", "visit_reverted", "record_forged", "duplicate_site", "config_refused",
         "internal_error", "export_failed", "persist_failed", "round_passed", "round_alone",
         "update_refused", "offence", "worker_waiting", "cannot_listen", "peer_quarantined",
         "disk_slow", "not_reached", "lists_differ", "state_dir_gone",
         "control_socket_gone"}  # fmt: skip
_QUIET = {"offer_sent", "offer_busy", "offer_in_busy"}


class Journal:
    """Writes notes. `clock` gives wall seconds; a log that cannot be written becomes a warning in status."""

    def __init__(
        self,
        event_log: EventLog,
        audit: Audit,
        training: WorkerView,
        clock: Callable[[], float],
        disk: DiskWatch,
    ) -> None:
        self._disk = disk
        self._events, self._audit, self._training, self._clock = event_log, audit, training, clock

    def note(self, event: str, **fields: Any) -> None:
        """Write an event to the event log and the log; fields that are None or empty are left out."""
        fields = {k: v for k, v in fields.items() if v not in (None, "")}
        self._audit.note(event, fields)
        try:
            with self._disk.timing("the event log"):  # not fsynced: the page cache takes it at once
                self._events.append(event, t=self._clock(), **fields)
        except (OSError, LocalError) as e:
            self._training.warn("events", f"the event log cannot be written: {e}")
        else:
            if "events" in self._training.warnings:
                self._training.warn("events", "")
        level = logging.WARNING if event in _WARN else logging.DEBUG if event in _QUIET else logging.INFO
        log.log(level, "", extra={"event": event, "fields": fields})
