"""Running means of a round: each term over the steps that had it."""

from __future__ import annotations

import pytest
import torch

from gossipseg.learn.engine.history import RunningMeans


def test_a_term_that_begins_within_a_round_is_not_diluted() -> None:
    tally = RunningMeans()
    for step in range(4):
        terms = {"seg": torch.tensor(1.0)} | ({"pull": torch.tensor(0.8)} if step == 3 else {})
        tally.add(torch.tensor(2.0), terms)
    loss, means = tally.means()
    assert loss == 2.0 and means == {"seg": 1.0, "pull": pytest.approx(0.8)}
    again = RunningMeans()
    again.load(tally.state())
    assert again.means() == (loss, means)
    again.load({k: v for k, v in tally.state().items() if k != "counts"})  # of an earlier version
    assert again.means()[1] == {"seg": 1.0, "pull": pytest.approx(0.2)}
