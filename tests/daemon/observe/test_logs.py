"""The two forms of a log line, and text from peers in them."""

from __future__ import annotations

import json
import logging

import pytest

from gossipseg.daemon.observe import logs
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


def test_a_caller_that_is_gone_is_no_news(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    grpc = logging.getLogger("grpc._cython.cygrpc")
    try:
        logs.setup("text", "info")
        grpc.error("ExecuteBatchError raised in core by servicer method [%s]", "/gossipseg.wire.Peer/Ping")
        grpc.error("anything else")
        logs.close()
    finally:
        root.handlers[:], root.level = before
    said = capfd.readouterr().err
    assert "anything else" in said and "ExecuteBatchError" not in said
