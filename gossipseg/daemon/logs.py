"""Structured logs: JSON lines, or text that the journal reads well.

Every record may carry `event` (a stable name) and `fields` (a dict) through `extra`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: t, level, event, message and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        doc: dict[str, Any] = {
            "t": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            doc["traceback"] = self.formatException(record.exc_info)
        return json.dumps(doc, default=str)


class TextFormatter(logging.Formatter):
    """`event: message key=value …`; under the journal with a priority prefix, else with the time."""

    def __init__(self, journal: bool) -> None:
        super().__init__()
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        if self.journal:
            head = f"<{_PRIORITY.get(record.levelno, 6)}>"
        else:
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
            head = f"{clock} {record.levelname.lower():<7} "
        pairs = getattr(record, "fields", {}).items()
        fields = " ".join(f"{k}={_short(v)}" for k, v in pairs if v not in (None, "", {}))
        text = f"{head}{getattr(record, 'event', record.name)}: {record.getMessage()} {fields}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and not value.isprintable():  # a peer's text must not make up lines of its own
        return json.dumps(value)
    if isinstance(value, dict):
        return ",".join(f"{k}:{_short(v)}" for k, v in value.items())
    return value


def setup(form: str, level: str) -> None:
    """Send all logs to stderr in the given form (`text` or `json`)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter("JOURNAL_STREAM" in os.environ))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
