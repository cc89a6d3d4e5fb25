"""A few windows of a case, for a loss that is compared with itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.evaluation.few_windows import MOST_WINDOWS, few_windows
from gossipseg.learn.evaluation.pairs import losses_of
from gossipseg.learn.params import TrainingParams
from gossipseg.nets.output import NetOutput
from tests.learn.imagery import GREY


def test_a_small_image_is_looked_at_as_a_whole() -> None:
    label = np.zeros((40, 50), np.uint8)
    assert few_windows(label, (32, 32)) == [(slice(None), slice(None))]


@pytest.mark.parametrize("shape", [(300, 200), (10, 900), (60, 50, 40)])
def test_windows_lie_within_the_image_around_the_foreground(shape: tuple[int, ...]) -> None:
    label = np.full(shape, IGNORE, np.uint8)
    label[..., : shape[-1] // 2] = 0
    label[..., 5:7] = 1
    size = (16,) * len(shape)
    found = few_windows(label, size)
    assert len(found) == MOST_WINDOWS and found == few_windows(label, size), "always the same ones"
    for window in found:
        part = label[window]
        assert part.shape == tuple(min(s, n) for s, n in zip(size, shape, strict=True))
    assert all((label[window] == 1).any() for window in found[:-1])
    assert len({str(window) for window in found[:-1]}) == (MOST_WINDOWS - 1 if shape[0] > 16 else 1)


def test_one_window_is_away_from_the_foreground() -> None:
    """Harm may lie in what a model draws where there is nothing."""
    label = np.zeros((300, 300), np.uint8)
    label[:20, :20] = 1
    found = few_windows(label, (16, 16))
    assert [bool((label[window] == 1).any()) for window in found] == [True, True, True, False]


def test_without_foreground_they_are_spread_over_the_image() -> None:
    found = few_windows(np.zeros((400, 400), np.uint8), (32, 32))
    assert [w[0].start // 100 for w in found] == [0, 1, 2, 3]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pixels = 0

    def forward(self, x: Tensor) -> NetOutput:
        self.pixels += x[:, 0].numel()
        return NetOutput(torch.cat([-x, x], 1))


def test_the_loss_of_a_large_case_costs_no_more_than_of_a_few_windows() -> None:
    class Case:
        def __init__(self, known: bool) -> None:
            self.image = torch.zeros(1, 640, 640)
            self.label = torch.zeros(1, 640, 640, dtype=torch.uint8)
            self.label[:, 300:340, 300:340] = 1
            if not known:
                self.label[:] = IGNORE

    def loss(logits: Tensor, label: Tensor) -> float | None:
        assert logits.shape[1:] == label.shape[1:]
        return float((label == 1).float().mean()) if (label != IGNORE).any() else None

    net = Counting()
    cases = [Case(known=True), Case(known=False)]
    found = losses_of(net, cases, GREY, TrainingParams(), "cpu", loss=loss)  # type: ignore[arg-type]
    assert net.pixels == 2 * MOST_WINDOWS * 32 * 32
    assert found[0] is not None and found[0] > 0.1 and found[1] is None
