"""Batch norm's running statistics, measured anew."""

from __future__ import annotations

import torch
from torch import nn

from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.exchange.norm_recalibration import reestimate

CPU = Compute(torch.device("cpu"))


def test_the_statistics_are_plain_means_over_the_batches_without_dropout() -> None:
    batches = [torch.randn(4, 3, 8, 8) * k + k for k in (1.0, 2.0, 5.0)]
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5))
    net[1].running_mean.fill_(100.0)
    before = net[1].weight.clone()
    reestimate(net, lambda: batches, CPU)
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.transpose(0, 1).flatten(1).var(1) for b in batches]).mean(0)
    assert torch.allclose(net[1].running_mean, means, atol=1e-5)
    assert torch.allclose(net[1].running_var, variances, rtol=1e-4)
    assert net[1].momentum == 0.3 and net.training and net[0].training and net[1].training
    assert torch.equal(net[1].weight, before)


def test_nothing_is_read_where_there_is_no_batch_norm() -> None:
    def never() -> list[torch.Tensor]:
        raise AssertionError("a batch was made for nothing")

    reestimate(nn.Sequential(nn.Conv2d(1, 1, 1), nn.InstanceNorm2d(1)), never, CPU)
