"""Which kind of site a trainer gets: one that cuts patches of labelled cases, or one that makes episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gossipseg.algos.params import FedCoWProParams
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import Dataset, OnProgress
from gossipseg.learn.engine.precision import Compute
from gossipseg.learn.engine.site_data import SiteData
from gossipseg.learn.evaluation.evaluate import Scores, foreground_names
from gossipseg.learn.oneshot.episodes import EpisodeBatches, find_candidates
from gossipseg.learn.oneshot.pair_scores import labelled, one_shot
from gossipseg.learn.oneshot.pseudolabels import PseudoLabels, need_skimage
from gossipseg.learn.params import SplitName
from gossipseg.learn.settings import WorkerSettings


class EpisodeSite(SiteData):
    """Trains on episodes of unlabelled slices; scores one-shot, every labelled scan in turn as support."""

    def score(self, model: nn.Module, split: SplitName, on_progress: Callable[[float], None]) -> Scores:
        """Dice over the organ's range, mean over the supports; None with fewer than two labelled scans."""
        with torch.no_grad(), self.compute.autocast():
            found = one_shot(
                model, lambda: self._data.items(split), self.settings.task, self.compute.device, on_progress
            )
        return found.scores(self.settings.task)

    def _scored(self, split: SplitName) -> tuple[Case, ...]:
        """Labelled scans for which there is another one as support, which is one that holds a class."""
        values = torch.tensor([*foreground_names(self.settings.task)])
        scans = [(s.case, s.label) for s in labelled(self._data.items(split)) if s.label is not None]
        supports = {case.id for case, label in scans if torch.isin(label, values).any()}
        return tuple(case for case, _ in scans if supports - {case.id})


def open_site(
    settings: WorkerSettings,
    data: Dataset,
    compute: Compute,
    on_progress: OnProgress = lambda activity, fraction: None,
) -> SiteData:
    """The site that the algorithm trains on. Pseudo-masks are made here, where they are needed and missing.

    Raises ConfigError without scikit-image, DataError where no slice has any, LocalError where they cannot be
    kept in the state directory.
    """
    algorithm, size = settings.algorithm, settings.task.patch_size
    if not isinstance(algorithm, FedCoWProParams):
        return SiteData(settings, data, compute)
    need_skimage()
    method = algorithm.pseudo_labels
    folder = Path(settings.spec.state_dir) / "pseudolabels"
    candidates = find_candidates(
        data, PseudoLabels(folder, method, size, settings.task.slice_axis), on_progress
    )
    batches = EpisodeBatches(data, candidates, method, settings.training.batch_size, size)
    return EpisodeSite(settings, data, compute, batches)
