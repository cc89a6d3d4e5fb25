"""Measures of the house that may only become smaller. `tests/bench/measure_house.py` shows them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.measure_house import private_reads

ROOT = Path(__file__).parents[1]
PRIVATE_READS = 54
"""Reads of private attributes in all tests. Whoever needs fewer lowers it."""


def test_tests_read_no_more_private_attributes_than_before() -> None:
    """What a test must see, a product can show: a property with a docstring, or an effect."""
    found = private_reads(ROOT)
    most = ", ".join(f"{path} {n}" for path, n in found.most_common(8))
    assert found.total() <= PRIVATE_READS, (
        f"{found.total()} private attributes are read in tests, {PRIVATE_READS} are allowed; most in {most}. "
        "Ask by what the object shows, or let it show a view of what matters."
    )


@pytest.mark.parametrize(
    ("line", "reads"),
    [
        ("daemon._up", 1),
        ("daemon.runtime._queue.qsize()", 1),
        ("pool._training._trainer", 2),
        ("daemon._fail = print", 1),
        ("super()._note(1)", 1),
        ("self._made + cls._made", 0),
        ("self.pool._made", 1),
        ("daemon.__class__.__name__", 0),
        ("'daemon._up'", 0),
    ],
)
def test_what_is_counted(tmp_path: Path, line: str, reads: int) -> None:
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "tests" / "unit" / "test_x.py").write_text(line)
    assert private_reads(tmp_path).total() == reads
