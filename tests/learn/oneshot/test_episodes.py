"""Episodes of unlabelled slices: which slices and masks, the two views, a trainer that needs no label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gossipseg.errors import ConfigError, DataError
from gossipseg.learn import protocol
from gossipseg.learn.data.dataset import Dataset
from gossipseg.learn.engine.optim import learning_rate
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.engine.site_data import SiteData
from gossipseg.learn.engine.sites import EpisodeSite, open_site
from gossipseg.learn.oneshot import pseudolabels
from gossipseg.learn.oneshot.episodes import EpisodeBatches, elastic, find_candidates, view, with_gamma
from gossipseg.learn.oneshot.pseudolabels import PseudoLabels, dilated
from gossipseg.learn.params import TrainingParams, WorkerSpec
from gossipseg.learn.settings import read_settings
from tests.learn.harness import make_spec as patch_spec
from tests.learn.harness import make_trainer, same, worker, write_png_site
from tests.learn.imagery import write_list, write_nifti
from tests.learn.oneshot_site import SIZE, SLICES, TASK, make_spec, write_scans


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("unlabelled"), {"training": 2, "validation": 2}, labels=False)


def open_episodes(spec: WorkerSpec, progress: list[tuple[str, float]] | None = None) -> SiteData:
    settings = read_settings(spec)
    seen = [] if progress is None else progress
    return open_site(
        settings,
        Dataset.open(spec),
        choose_compute(settings.device),
        lambda text, share: seen.append((text, share)),
    )


def batch(site: SiteData, round: int = 1, step: int = 0) -> dict[str, torch.Tensor]:
    ((at, found),) = site.batches(round, step, step + 1)
    assert at == step
    return found


def test_labels_of_training_cases_are_not_looked_at(tmp_path: Path) -> None:
    data = write_scans(tmp_path / "data", {"training": 2, "validation": 2})
    for file in (data / "labels").glob("training_*"):
        file.write_bytes(b"no label at all")
    opened = Dataset.open(make_spec(data, tmp_path / "state"))
    assert [item.label for item in opened.items("training")] == [None, None]
    assert all(item.label is not None for item in opened.items("validation")), "these it is judged with"


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("method", ["alp", "cow"])
def test_a_batch_is_supports_then_queries_with_their_masks(
    unlabelled: Path, tmp_path: Path, method: str
) -> None:
    site = open_episodes(make_spec(unlabelled, tmp_path, algorithm={"pseudo_labels": method}))
    assert isinstance(site, EpisodeSite)
    assert site.cases == 2
    found = batch(site)
    assert found["image"].shape == (4, 1, SIZE, SIZE)
    assert found["image"].dtype == torch.float32
    assert found["label"].shape == (4, 1, SIZE, SIZE)
    assert found["label"].dtype == torch.int64
    assert found["label"].unique().tolist() == [0, 1]
    covered = found["label"].float().mean((1, 2, 3))
    assert (covered > 0).all()
    assert (covered < 1).all()
    support, query = found["label"].float().chunk(2)
    assert not torch.equal(support, query)
    many = [batch(site, step=step)["label"].float().chunk(2) for step in range(12)]
    overlap = [float((s * q).sum() / torch.minimum(s.sum(), q.sum())) for s, q in many]
    assert np.mean(overlap) > 0.5, "both views are of one region, moved by a few pixels"


def test_batches_depend_on_seed_site_round_and_step_alone(unlabelled: Path, tmp_path: Path) -> None:
    first, again = (open_episodes(make_spec(unlabelled, tmp_path / name)) for name in ("a", "b"))
    wanted = batch(first, 2, 1)
    batch(again, 1, 0)
    assert same(batch(again, 2, 1), wanted)
    assert not same(batch(again, 2, 0), wanted)
    assert not same(batch(again, 1, 1), wanted)
    other = open_episodes(make_spec(unlabelled, tmp_path / "a", site="south"))
    assert not same(batch(other, 2, 1), wanted)


def test_masks_are_regions_of_their_slice(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without augmentation the two views are the slice and one of its regions, dilated for `cow`."""
    from gossipseg.learn.oneshot import episodes

    monkeypatch.setattr(episodes, "view", lambda rng, image, mask: (image, mask.float()))
    for method in ("alp", "cow"):
        spec = make_spec(unlabelled, tmp_path, algorithm={"pseudo_labels": method})
        data = Dataset.open(spec)
        candidates = find_candidates(data, PseudoLabels(tmp_path / method, method, (SIZE, SIZE), 2))  # type: ignore[arg-type]
        found = EpisodeBatches(data, candidates, method, 8, (SIZE, SIZE)).batch(1, "north", 1, 0)  # type: ignore[arg-type]
        for image, mask in zip(found["image"][:8], found["label"][:8], strict=True):
            where = [
                (case, k)
                for case in range(2)
                for k in range(SLICES)
                if torch.equal(data.item("training", case).image[..., k], image)
            ]
            ((case, k),) = where
            regions = candidates.maps[case][k]
            masks = [regions == value for value in range(1, int(regions.max()) + 1)]
            masks = [dilated(one) for one in masks] if method == "cow" else masks
            assert any(np.array_equal(one, mask[0].numpy()) for one in masks)


def test_slices_without_a_candidate_are_left_out(tmp_path: Path) -> None:
    write_scans(tmp_path / "data", {"training": 1, "validation": 1})
    image = np.zeros((SIZE, SIZE, 4), np.float32)
    image[10:30, 10:40, 2] = 100
    write_nifti(tmp_path / "data" / "images" / "training_0.nii.gz", image)
    write_nifti(tmp_path / "data" / "labels" / "training_0.nii.gz", (image > 0).astype(np.uint8))
    spec = make_spec(tmp_path / "data", tmp_path)
    data = Dataset.open(spec)
    candidates = find_candidates(data, PseudoLabels(tmp_path / "p", "alp", (SIZE, SIZE), 2))
    assert [(case, k) for case, k, _ in candidates.usable] == [(0, 2)]


def test_a_site_without_any_candidate_says_so(tmp_path: Path) -> None:
    write_scans(tmp_path / "data", {"training": 1, "validation": 1}, flat=True)
    Image.new("L", (SIZE, SIZE), 9).save(tmp_path / "data" / "images" / "training_0.png")
    spec = make_spec(tmp_path / "data", tmp_path / "state", flat=True)
    with pytest.raises(DataError) as refused:
        open_episodes(spec)
    assert refused.value.key == "algorithm.pseudo_labels"


def test_slices_are_brought_to_the_size_of_the_network(unlabelled: Path, tmp_path: Path) -> None:
    site = open_episodes(make_spec(unlabelled, tmp_path, task={"patch_size": (32, 64)}))
    found = batch(site)
    assert found["image"].shape == found["label"].shape == (4, 1, 32, 64)
    assert 0.6 < float(found["image"].std()) < 1.3, "still the standardised image"


def test_progress_while_the_cache_fills_and_none_of_it_twice(
    unlabelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress: list[tuple[str, float]] = []
    open_episodes(make_spec(unlabelled, tmp_path), progress)
    assert {text for text, _ in progress} >= {"pseudo-labels of training_0", "pseudo-labels of training_1"}
    shares = [share for _, share in progress]
    assert shares == sorted(shares)
    assert len(shares) > 2 * SLICES
    assert shares[-1] == 1
    assert len(list((tmp_path / "pseudolabels").iterdir())) == 2
    monkeypatch.setattr(pseudolabels, "regions", None)
    open_episodes(make_spec(unlabelled, tmp_path))


# ---------------------------------------------------------------- views


def test_views_stay_within_the_published_ranges() -> None:
    image = torch.zeros(1, 64, 64)
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 24:40, 24:40] = True
    image[mask] = 1
    rng = np.random.default_rng(0)
    areas, centres = [], []
    for _ in range(60):
        seen, moved = view(rng, image, mask)
        assert set(moved.unique().tolist()) == {0.0, 1.0}
        assert float(seen.min()) >= 0
        assert float(seen.max()) <= 1 + 1e-5
        agreement = (seen > 0.3) == (moved > 0)  # gamma bends what lies between, never the order
        assert agreement.float().mean() > 0.97
        areas.append(float(moved.sum()) / 256)
        centres.append(torch.nonzero(moved[0]).float().mean(0) - 31.5)
    assert 0.75 < min(areas) < 0.95
    assert 1.2 < max(areas) < 1.55, "scale 0.9 … 1.2, squared"
    assert torch.stack(centres).abs().max() < 3, "5 px of 256 are 1.25 here; the rest is bending and rounding"


def test_a_view_whose_mask_has_vanished_is_drawn_again() -> None:
    corner = torch.zeros(1, 64, 64, dtype=torch.bool)
    corner[0, 0, 0] = True  # most draws turn it out of the picture
    full = torch.ones(1, 64, 64, dtype=torch.bool)
    full[0, 0, 0] = False
    rng = np.random.default_rng(0)
    for _ in range(10):
        assert 0 < view(rng, torch.rand(1, 64, 64), corner)[1].sum() < 64 * 64
        assert 0 < view(rng, torch.rand(1, 64, 64), full)[1].sum() < 64 * 64


def test_gamma_keeps_the_range() -> None:
    image = torch.tensor([[[-1.0, 0.0, 1.0]]])
    assert torch.allclose(with_gamma(image, 2.0), torch.tensor([[[-1.0, -0.5, 1.0]]]))
    assert torch.equal(with_gamma(torch.zeros(1, 2, 2), 0.5), torch.zeros(1, 2, 2))


def test_bending_is_the_same_share_of_a_small_slice() -> None:
    found = [elastic(np.random.default_rng(0), (n, n), n / 256).std() / n for n in (256, 64)]
    assert found[0] == pytest.approx(0.326 / 256, rel=0.1)  # α/σ · sqrt(1/3) / (2·sqrt(π)), in pixels
    assert found[1] == pytest.approx(found[0], rel=0.2)


# ---------------------------------------------------------------- a trainer on them


def test_trains_without_a_single_label(unlabelled: Path, tmp_path: Path) -> None:
    trainer = make_trainer(make_spec(unlabelled, tmp_path))
    before = {n: t.clone() for n, t in trainer.model_state.weights().items()}
    done = trainer.run_round(protocol.StartRound(1))
    assert done.loss is not None
    assert set(done.terms) == {"cowpro", "spatial_dice", "edge_dice"}
    assert done.dice_val is None, "nothing to score on"
    assert all(
        not torch.equal(t, before[n]) for n, t in trainer.model_state.weights().items() if t.dim() == 4
    )


def test_training_learns_the_episodes(unlabelled: Path, tmp_path: Path) -> None:
    settings = {"steps_per_round": 12, "learning_rate": 0.02}
    trainer = make_trainer(make_spec(unlabelled, tmp_path, training=settings))
    first, *_, last = (trainer.run_round(protocol.StartRound(n)).loss for n in (1, 2, 3))
    assert last < 0.9 * first


def test_a_round_cut_in_two_is_the_same_round(unlabelled: Path, tmp_path: Path) -> None:
    whole = make_trainer(make_spec(unlabelled, tmp_path))
    whole.run_round(protocol.StartRound(1))

    class Stop(Exception):
        pass

    def gate() -> None:
        if cut.history.step == 1:
            raise Stop

    cut = make_trainer(make_spec(unlabelled, tmp_path), gate)
    with pytest.raises(Stop):
        cut.run_round(protocol.StartRound(1))
    resumed = make_trainer(make_spec(unlabelled, tmp_path))
    resumed.load(cut.state())
    resumed.run_round(protocol.StartRound(1))
    assert same(whole.model_state.weights(), resumed.model_state.weights())


@pytest.mark.slow
def test_a_real_worker_makes_pseudo_masks_before_it_is_ready(unlabelled: Path, tmp_path: Path) -> None:
    with worker(make_spec(unlabelled, tmp_path)) as running:
        ready = running.wait(protocol.Ready)
        assert len(list((tmp_path / "pseudolabels").iterdir())) == 2
        assert ready.splits == {"training": 2, "validation": 2, "test": 0}
        done = running.round(1, export=True)
        assert done.export is not None
        assert running.stop() == 0


# ---------------------------------------------------------------- what does not go together


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {
                "algorithm": {"name": "fedcowpro"},
                "network": {"name": "unet", "norm": "instance", "options": {}},
            },
            "network.name",
        ),
        ({"task": {"spatial_dims": 3, "patch_size": (48, 48, 48)}}, "task.spatial_dims"),
        ({"training": {"output": "sigmoid"}}, "training.output"),
        ({"task": {"patch_size": (24, 24)}}, "task.patch_size"),
        ({"network": {"norm": "instance"}}, "network.norm"),
    ],
)
def test_refused_at_start(unlabelled: Path, tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_trainer(make_spec(unlabelled, tmp_path, **changes))
    assert refused.value.key == key


def test_the_encoder_and_slices_are_for_no_other_algorithm(tmp_path: Path) -> None:
    data = write_png_site(tmp_path / "data")
    spec = patch_spec(data, tmp_path, network={"name": "cowpro_encoder", "norm": "group"})
    with pytest.raises(ConfigError, match=r"network\.name"):
        read_settings(spec)
    spec = patch_spec(data, tmp_path)
    spec.task["slice_axis"] = 2
    with pytest.raises(ConfigError, match=r"slice_axis"):
        read_settings(spec)


def test_other_algorithms_still_cut_patches(tmp_path: Path) -> None:
    spec = patch_spec(write_png_site(tmp_path / "data"), tmp_path)
    assert type(open_episodes(spec)) is SiteData
    write_list(tmp_path / "data", {"training": [{"image": "images/case0.png"}]})
    with pytest.raises(DataError, match="no label"):
        open_episodes(spec)


def test_the_learning_rate_decays_in_steps_across_rounds() -> None:
    training = TrainingParams(
        steps_per_round=400,
        learning_rate=1e-3,
        schedule="step_decay",
        decay_every_steps=1000,
        decay_factor=0.95,
    )
    found = {(r, s): learning_rate(training, r, s) for r, s in [(1, 0), (3, 199), (3, 200), (6, 0), (11, 0)]}
    assert found == {
        (1, 0): 1e-3,
        (3, 199): 1e-3,  # step 999
        (3, 200): pytest.approx(0.95e-3),  # step 1000
        (6, 0): pytest.approx(0.95**2 * 1e-3),
        (11, 0): pytest.approx(0.95**4 * 1e-3),
    }
    assert TASK.image_dims == 2
