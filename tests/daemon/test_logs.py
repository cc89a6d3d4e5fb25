"""The two forms of a log line, and text from peers in them."""

from __future__ import annotations

import json
import logging

from gossipseg.daemon.observe.logs import JsonFormatter, TextFormatter


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("x", logging.WARNING, "f", 1, "", (), None)
    made.event, made.fields = "peer_refused", fields
    return made


def test_text_for_the_journal() -> None:
    line = TextFormatter(journal=True).format(record(site="b", loss=0.123456, none=None))
    assert line == "<4>peer_refused:  site=b loss=0.1235"


def test_a_peers_text_cannot_make_up_a_line() -> None:
    line = TextFormatter(journal=True).format(record(reason="no\n<2>root: all is lost\x1b[2J"))
    assert "\n" not in line and "\x1b" not in line


def test_json() -> None:
    doc = json.loads(JsonFormatter().format(record(site="b")))
    assert (doc["event"], doc["level"], doc["site"]) == ("peer_refused", "warning", "b")
