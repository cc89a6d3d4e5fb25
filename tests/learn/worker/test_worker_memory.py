"""What the training process says where memory does not suffice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gossipseg.daemon.worker.process import last_line
from gossipseg.errors import EXIT_FAILED
from gossipseg.learn import protocol
from gossipseg.learn.worker import __main__, session
from tests.learn.harness import make_spec

TEXTS = (
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
        "to allocate 1073741824 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.\n" + "GPU 0 has a total capacity. " * 30),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
)


class _Link:
    def __init__(self, spec: Any) -> None:
        self._spec = spec

    def order(self) -> protocol.Configure:
        return protocol.Configure(dataclasses.asdict(self._spec))

    def send(self, message: protocol.Message) -> None:
        assert isinstance(message, protocol.Preparing)


@pytest.mark.parametrize("error", TEXTS)
def test_the_last_words_are_that_memory_did_not_suffice(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def serve(link: object, spec: object) -> None:
        raise error

    monkeypatch.setattr(session, "serve", serve)
    link: Any = _Link(make_spec(tmp_path, tmp_path / "state"))
    assert __main__._serve(link) == EXIT_FAILED
    log = tmp_path / "worker.log"
    log.write_text(capfd.readouterr().err)
    told = last_line(log)  # as the daemon tells it
    assert told.startswith("not enough memory") and "training.batch_size" in told, told
    assert "Traceback" not in log.read_text()


def test_other_errors_are_not_called_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(link: object, spec: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(session, "serve", serve)
    link: Any = _Link(make_spec(tmp_path, tmp_path / "state"))
    with pytest.raises(RuntimeError, match="mat1"):
        __main__._serve(link)
