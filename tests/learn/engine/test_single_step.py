"""Exactly one module of the package trains."""

from __future__ import annotations

from pathlib import Path

import pytest

import gossipseg

PACKAGE = Path(gossipseg.__file__).parent
TRAINING_CALLS = (".backward(", "optimizer.step(", "scaler.step(")


@pytest.mark.parametrize("call", (".backward(", "scaler.step("))
def test_only_the_step_trains(call: str) -> None:
    modules = [p for p in PACKAGE.rglob("*.py") if call in p.read_text(encoding="utf-8")]
    assert [p.relative_to(PACKAGE).as_posix() for p in modules] == ["learn/engine/train_step.py"]


def test_nothing_else_steps_an_optimizer() -> None:
    modules = {
        p.relative_to(PACKAGE).as_posix()
        for p in PACKAGE.rglob("*.py")
        if any(call in p.read_text(encoding="utf-8") for call in TRAINING_CALLS)
    }
    assert modules == {"learn/engine/train_step.py"}
