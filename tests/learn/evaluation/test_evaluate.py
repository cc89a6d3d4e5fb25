"""Scores against values worked out by hand, sliding windows, and the evaluate command."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gossipseg.errors import EXIT_DATA, EXIT_FAILED
from gossipseg.learn.commands.evaluate import _table, main
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import Dataset, Item, load_item
from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.data.readers import Volume
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.learn.engine.site_data import SiteData
from gossipseg.learn.evaluation.evaluate import (
    labels_of,
    labels_on,
    predict_logits,
    score,
    score_case,
    summarise,
)
from gossipseg.learn.evaluation.overlays import CAPTION_PX, COLOURS, busiest_slice, triplet
from gossipseg.learn.evaluation.scoring import Counts
from gossipseg.learn.params import TaskParams, TrainingParams
from gossipseg.nets.output import NetOutput
from tests.learn.imagery import (
    RGB,
    VOLUME,
    nifti_site,
    png_site,
    spec,
    spec_file,
    write_checkpoint,
    write_nifti,
)

TASK = TaskParams("t", 1, {0: "b", 1: "one", 2: "two"}, patch_size=(8, 8))
SOFTMAX = TrainingParams()
SIGMOID = TrainingParams(output="sigmoid")


class Echo(nn.Module):
    """Says of each voxel what its image says: class 0, 1 or 2 by value. Records its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> NetOutput:
        self.modes.append(self.training)
        return NetOutput(torch.cat([(x - c).abs() * -10 for c in range(3)], 1))


def item(label: Tensor, image: Tensor | None = None) -> Item:
    return Item(Case("c", Path()), (label.float() if image is None else image), label, None)


def squares(*corners: tuple[int, int, int, int]) -> Tensor:
    """(16, 16) label values: the n-th corner (row, column, height, width) holds value n."""
    out = torch.zeros(16, 16, dtype=torch.uint8)
    for value, (r, c, h, w) in enumerate(corners, start=1):
        out[r : r + h, c : c + w] = value
    return out


def test_dice_by_hand() -> None:
    truth, guess = squares((0, 0, 4, 4), (8, 8, 2, 2)), squares((0, 2, 4, 4), (8, 8, 2, 4))
    # one: |A∩B| = 8, |A| = |B| = 16 → 0.5;  two: 4, 4 and 8 → 2·4/12
    assert score_case("c", guess, truth, TASK).dice == pytest.approx({"one": 0.5, "two": 8 / 12})


def test_empty_ground_truth_is_left_out_and_its_false_positives_reported() -> None:
    empty = score_case("a", squares((0, 0, 2, 2), (5, 5, 2, 3)), squares((0, 0, 2, 2)), TASK)
    assert empty.dice == {"one": 1.0, "two": None} and empty.mean == 1.0
    assert empty.false_positive_voxels == {"two": 6}
    missed = score_case("b", squares(), squares((0, 0, 2, 2), (5, 5, 2, 2)), TASK)
    assert missed.dice == {"one": 0.0, "two": 0.0} and missed.false_positive_voxels == {}
    scores = summarise([empty, missed], TASK)
    assert scores.per_class == {"one": 0.5, "two": 0.0} and scores.mean == 0.25


def test_nothing_to_score_gives_no_mean() -> None:
    assert summarise([score_case("a", squares((0, 0, 2, 2)), squares(), TASK)], TASK).mean is None


def test_hd95_by_hand_in_mm() -> None:
    truth, guess = squares((4, 4, 1, 1)), squares((4, 7, 1, 1))
    scored = score_case("a", guess, truth, TASK, hd95=True, spacing_mm=(1.0, 0.5))
    assert scored.hd95 == {"one": pytest.approx(1.5), "two": None}
    assert score_case("a", guess, truth, TASK, hd95=True).hd95["one"] == pytest.approx(3.0)


@pytest.mark.parametrize("shape", [(5, 6), (8, 8), (19, 23)])
def test_windows_cover_every_voxel_in_place_also_of_small_images(shape: tuple[int, int]) -> None:
    label = torch.randint(0, 3, (1, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    logits = predict_logits(Echo(), label.float(), TASK, SOFTMAX, "cpu")
    assert logits.shape == (3, *shape) and logits.dtype == torch.float32
    assert torch.equal(labels_of(logits, SOFTMAX), label[0])


def test_the_network_is_evaluated_in_evaluation_mode_and_left_as_it_was() -> None:
    net = Echo().train()
    score(net, [item(squares((0, 0, 4, 4))[None])], TASK, SOFTMAX, "cpu")
    assert net.modes and not any(net.modes) and net.training


def test_score_skips_unlabelled_cases_and_reports_progress() -> None:
    label = squares((0, 0, 4, 4), (8, 8, 4, 4))[None]
    cases = [item(label), Item(Case("u", Path()), label.float(), None, None), item(label)]
    seen: list[float] = []
    scores = score(Echo(), cases, TASK, SOFTMAX, "cpu", seen.append)
    assert scores.mean == 1.0 and len(scores.per_case) == 2
    assert seen == pytest.approx([1 / 3, 2 / 3, 1.0])


# ---------------------------------------------------------------- the label's own grid


COARSE = dataclasses.replace(VOLUME, labels=TASK.labels, spacing_mm=(4.0, 4.0, 4.0))


def lesions(folder: Path, *, small: bool) -> Case:
    """A volume of 1 mm whose voxels say what they are: a large box of one, and a voxel or two of two."""
    label = np.zeros((32, 32, 32), np.uint8)
    label[4:20, 4:20, 4:20] = 1
    if small:
        label[25:27, 25, 25] = 2
    image = write_nifti(folder / f"image_{small}.nii.gz", label.astype(np.float32))
    return Case(f"small_{small}", image, write_nifti(folder / f"label_{small}.nii.gz", label))


def test_a_lesion_that_vanishes_at_the_tasks_spacing_counts_as_missed(tmp_path: Path) -> None:
    task = dataclasses.replace(COARSE, intensity="ct_window", ct_window_hu=(0.0, 2.0))
    items = [load_item(lesions(tmp_path, small=small), task) for small in (True, False)]
    assert not (items[0].label == 2).any() and (items[0].truth == 2).sum() == 2
    scores = score(Half(), items, task, SOFTMAX, "cpu")
    assert scores.per_class["two"] == 0.0 and scores.counts["two"].missed == 1
    assert scores.counts["two"].true_negatives == 1
    assert scores.per_class["one"] is not None and 0.6 < scores.per_class["one"] < 1.0
    assert scores.per_case[0].mean == pytest.approx((scores.per_case[0].dice["one"] or 0) / 2)


class Half(nn.Module):
    """Says one where the intensity passes a quarter of the window."""

    def forward(self, x: Tensor) -> NetOutput:
        return NetOutput(torch.cat([0.25 - x, x - 0.25, x * 0 - 9], 1))


def test_a_prediction_is_scored_on_the_files_grid_and_in_its_mm(tmp_path: Path) -> None:
    """The same as bringing it back by hand."""
    task = dataclasses.replace(COARSE, intensity="ct_window", ct_window_hu=(0.0, 2.0))
    item = load_item(lesions(tmp_path, small=False), task)
    assert item.grid is not None and item.truth is not None
    logits = predict_logits(Half(), item.image, task, SOFTMAX, "cpu")
    there = labels_on(item.grid, logits, SOFTMAX)
    assert there.shape == (32, 32, 32) and logits.shape[1:] != there.shape
    by_hand = score_case("c", there, item.truth, task)
    assert score(Half(), [item], task, SOFTMAX, "cpu").per_case[0].dice == by_hand.dice
    on_the_tasks = dataclasses.replace(item, truth=None)
    assert score(Half(), [on_the_tasks], task, SOFTMAX, "cpu").per_case[0].dice != by_hand.dice


def test_ignored_voxels_and_classes_that_are_not_annotated_count_nowhere() -> None:
    truth, guess = squares((0, 0, 4, 4)), squares((0, 0, 4, 8), (10, 10, 3, 3))
    truth[:, 4:6] = IGNORE
    # one: 16 right, 16 too many of which 8 are ignored → 2·16/(16 + 24)
    scored = score_case("c", guess, truth, TASK)
    assert scored.dice == {"one": pytest.approx(0.8), "two": None}
    assert scored.false_positive_voxels == {"two": 9} and scored.false_alarms == ("two",)
    partly = score_case("c", guess, truth, TASK, annotated=(1,))
    assert partly.dice == scored.dice and partly.false_positive_voxels == {}
    counts = summarise([partly], TASK).counts["two"]
    assert (counts.cases, counts.false_alarms) == (0, 0)
    here = item(truth[None], guess[None].float())
    assert score(Echo(), [here], TASK, SOFTMAX, "cpu", annotated=[1]).per_case[0] == partly


def test_a_missed_class_has_the_diagonal_as_hd95_and_a_mean_without_it_beside() -> None:
    truth, guess = squares((4, 4, 1, 1)), squares((4, 7, 1, 1))
    options = {"hd95": True, "spacing_mm": (0.3, 0.4)}
    missed = score_case("a", squares(), truth, TASK, **options)
    assert missed.hd95["one"] == pytest.approx(16 * 0.5) and missed.nsd["one"] == 0.0
    beside = score_case("b", guess, truth, TASK, **options)
    assert beside.missed == ("one",) and beside.hd95["one"] == pytest.approx(1.2)
    right = score_case("c", truth, truth, TASK, **options)
    scores = summarise([missed, beside, right], TASK)
    assert scores.hd95["one"] == pytest.approx((8 + 1.2 + 0) / 3)
    assert scores.hd95_without_missed["one"] == 0.0
    assert (scores.counts["one"].detected, scores.counts["one"].missed) == (1, 2)


def test_false_alarms_stand_beside_the_mean() -> None:
    right = score_case("a", squares((0, 0, 2, 2)), squares((0, 0, 2, 2)), TASK)
    alarm = score_case("b", squares((0, 0, 2, 2)), squares(), TASK)
    quiet = score_case("c", squares(), squares(), TASK)
    scores = summarise([right, alarm, quiet], TASK)
    assert scores.per_class["one"] == 1.0 and scores.with_false_alarms["one"] == 0.5
    assert scores.counts["one"] == Counts(3, 1, 1, 0, 1, 1, 4, None)
    assert alarm.mean is None, "the guard and other choices leave it out"


def test_labels_of_sigmoid_logits_take_the_best_channel_over_one_half() -> None:
    logits = torch.tensor([[-1.0, 2.0, 1.0, 0.0], [-2.0, 1.0, 3.0, -1.0]])[:, None]
    assert labels_of(logits, SIGMOID).tolist() == [[0, 1, 2, 0]]


# ---------------------------------------------------------------- pictures


def test_the_busiest_slice_is_shown() -> None:
    label = np.zeros((4, 4, 7), np.uint8)
    label[0, 0, 1] = 1
    label[:2, :2, 3:6] = 2
    assert busiest_slice(label) == 4 and busiest_slice(np.zeros((2, 2, 5))) == 2


def test_a_triplet_shows_image_label_and_prediction() -> None:
    label, guess = squares((0, 0, 8, 8)).numpy(), squares((8, 8, 8, 8)).numpy()
    volume = Volume(np.zeros((1, 16, 16), np.uint8), None)
    picture = np.asarray(triplet(volume, label, guess, ("a", "b", "c")))
    height, side = 256, 256
    assert picture.shape == (height + CAPTION_PX, 3 * side + 8, 3)
    panels = [picture[CAPTION_PX:, i * (side + 4) : i * (side + 4) + side] for i in range(3)]
    top, bottom = (slice(10, 100),) * 2, (slice(140, 240),) * 2
    assert (panels[0] == 0).all()
    for panel, tinted, plain in ((panels[1], top, bottom), (panels[2], bottom, top)):
        assert (panel[plain] == 0).all()
        np.testing.assert_allclose(panel[tinted][0, 0], 0.55 * np.array(COLOURS[0]), atol=1)


# ---------------------------------------------------------------- the command


def test_the_table_tells_what_was_missed_and_what_was_drawn_where_nothing_is() -> None:
    volume = {"hd95": True, "spacing_mm": (0.5, 1.0, 2.0)}
    truth, nothing = torch.zeros(8, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, 8, dtype=torch.uint8)
    truth[2:5, 2:5, 2:5] = 1
    cases = [
        score_case(name, p, t, TASK, annotated=[1], **volume)
        for name, p, t in (("a", truth, truth), ("b", nothing, truth), ("c", truth, nothing))
    ]
    text = _table({"hd95": {"unit": "mm"}, "split": "test"}, summarise(cases, TASK))
    heading, one, two, mean, *_ = text.splitlines()
    assert "HD95 mm" in heading and "w/o missed" in heading and "missed" in heading
    # Dice 1 and 0; with the false alarm a third 0; HD95 0 and the diagonal of 4 × 8 × 16 mm
    cells = ["one", "0.5000", "0.3333", "0.5000", "9.17", "0.00", "3", "2", "1", "1"]
    assert one.split() == [*cells, "1", "(27", "voxels,", "27", "mm³)"]
    assert two.split()[-3:] == ["not", "annotated", "here"]
    assert mean.split()[:4] == ["mean", "0.5000", "0.3333", "0.5000"]
    assert "within 2 mm" in text


def test_evaluate_writes_json_csv_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1, "test": 3}, rgb=True)
    made = spec(tmp_path, RGB)
    write_checkpoint(made, 3)
    out = ["--json", str(tmp_path / "e.json"), "--csv", str(tmp_path / "e.csv")]
    out += ["--overlays", str(tmp_path / "pictures"), "--max-overlays", "2"]
    assert main(["--spec", spec_file(tmp_path, made), *out]) == 0
    document = json.loads((tmp_path / "e.json").read_text())
    assert (document["schema"], document["kind"], document["split"]) == (1, "evaluation", "test")
    assert (document["weights"], document["round"], document["steps"]) == ("ema", 3, 300)
    assert [c["id"] for c in document["cases"]] == ["test_0", "test_1", "test_2"]
    assert document["hd95"]["unit"] == "px" and 0 <= document["dice"]["mean"] <= 1
    rows = list(csv.DictReader((tmp_path / "e.csv").read_text().splitlines()))
    assert [r["class"] for r in rows] == ["blob"] * 3
    assert {r["unit"] for r in rows} == {"px"} and {r["outcome"] for r in rows} <= {"detected", "missed"}
    assert float(rows[0]["nsd"]) == pytest.approx(document["cases"][0]["nsd"]["blob"], abs=1e-6)
    counts = document["counts"]["blob"]
    assert (counts["cases"], counts["present"]) == (3, 3)
    assert counts["detected"] + counts["missed"] == 3 and document["nsd"]["tolerance"] == 2.0
    assert float(rows[0]["dice"]) == pytest.approx(document["cases"][0]["dice"]["blob"], abs=1e-6)
    pictures = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert pictures == ["test_0.png", "test_1.png"]
    with Image.open(tmp_path / "pictures/test_0.png") as picture:
        assert picture.mode == "RGB"
    captured = capsys.readouterr()
    assert "mean" in captured.out and "[100%]" in captured.err


def test_evaluate_of_volumes_is_in_mm_on_the_files_grid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti_site(tmp_path, {"training": 1, "validation": 1, "test": 1}, np.diag([1.0, 1.0, 2.0, 1.0]))
    task = TaskParams(**{**spec(tmp_path, VOLUME).task, "spacing_mm": (1.5, 1.5, 1.5), "orientation": "LPS"})
    made = spec(tmp_path, task)
    assert main(["--spec", spec_file(tmp_path, made), "--initial", "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["hd95"]["unit"] == "mm" and document["weights"] == "initial" and document["round"] == 0
    assert set(document["cases"][0]["dice"]) == {"liver", "spleen"}


def test_the_tolerance_of_the_surface_dice_is_the_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1, "test": 1}, rgb=True)
    file = spec_file(tmp_path, spec(tmp_path, RGB))
    found = []
    for tolerance in ("0", "1000"):
        assert main(["--spec", file, "--initial", "--json", "-", "--tolerance", tolerance]) == 0
        found.append(json.loads(capsys.readouterr().out)["nsd"])
    assert found[0]["tolerance"] == 0.0 and found[0]["mean"] < found[1]["mean"] == 1.0
    with pytest.raises(SystemExit):
        main(["--spec", file, "--tolerance", "-1"])


def test_the_trainers_score_and_the_commands_agree_also_with_resampling_and_annotated_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nifti_site(tmp_path, {"training": 1, "validation": 2}, np.diag([1.0, 1.0, 2.0, 1.0]))
    task = dataclasses.replace(VOLUME, spacing_mm=(1.5, 1.5, 1.5), orientation="LPS")
    made = spec(tmp_path, task, data={"annotated_labels": (1,)})
    write_checkpoint(made)
    assert main(["--spec", spec_file(tmp_path, made), "--split", "validation", "--json", "-"]) == 0
    there = json.loads(capsys.readouterr().out)
    assert there["counts"]["spleen"]["cases"] == 0 and there["dice"]["per_class"]["spleen"] is None
    d = load_deployment(made)
    site = SiteData(d.settings, Dataset.open(made), d.compute)
    here = site.score(d.net, "validation", lambda fraction: None)
    assert here.mean == pytest.approx(there["dice"]["mean"], abs=1e-6) and here.mean > 0
    assert here.counts["spleen"].cases == 0


def test_the_trainers_score_and_the_commands_agree_without_resampling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png_site(tmp_path, {"training": 1, "validation": 2}, rgb=True)
    made = spec(tmp_path, RGB)
    write_checkpoint(made)
    assert main(["--spec", spec_file(tmp_path, made), "--split", "validation", "--json", "-"]) == 0
    there = json.loads(capsys.readouterr().out)["dice"]["mean"]
    d = load_deployment(made)
    here = score(d.net, list(Dataset.open(made).items("validation")), RGB, d.settings.training, "cpu")
    assert here.mean == pytest.approx(there, abs=1e-6)


def test_evaluate_without_a_checkpoint_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1, "test": 1}, rgb=True)
    assert main(["--spec", spec_file(tmp_path, spec(tmp_path, RGB))]) == EXIT_FAILED
    assert "there is no checkpoint yet" in capsys.readouterr().err


def test_evaluate_of_a_split_without_labels_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png_site(tmp_path, {"training": 1, "validation": 1}, rgb=True)
    made = spec(tmp_path, RGB)
    assert main(["--spec", spec_file(tmp_path, made), "--initial"]) == EXIT_DATA
    assert "no case of this split has a label" in capsys.readouterr().err
