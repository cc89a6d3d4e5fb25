"""The end of a budget under a coordinator: what is still exchanged, and what fine-tuning begins with."""

from __future__ import annotations

import pytest

from tests.sim.test_rounds import committed, federation, notes, state, verify


@pytest.mark.parametrize(("finetune", "last_common"), [(0, 5), (1, 5), (2, 4), (5, 1)])
def test_fine_tuning_begins_with_the_last_common_model(finetune: int, last_common: int) -> None:
    """Six rounds: no update of the very last one is sent, nor of those trained alone."""
    sim = federation(3, seed=finetune, rounds=6, finetune_rounds=finetune)
    sim.run(300)
    assert {state(n).round for n in sim.up()} == {6}
    assert set(committed(sim).values()) == {last_common}
    common = {c.proposal.model.hash for c in sim.commits if c.proposal.round == last_common}
    assert len(common) == 1
    assert {n.worker.last_global for n in sim.up()} == common, "the last common model was not taken"
    assert not notes(sim, "round_passed") and not notes(sim, "round_alone")
    verify(sim)
