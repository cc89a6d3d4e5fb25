"""One-shot evaluation: supports, parts, pairs and spreads against values worked out by hand; the command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gossipseg.learn import protocol
from gossipseg.learn.commands.evaluate import main as evaluate
from gossipseg.learn.commands.export import main as export
from gossipseg.learn.commands.oneshot import main
from gossipseg.learn.commands.predict import main as predict
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import Dataset, Item
from gossipseg.learn.data.labels import IGNORE
from gossipseg.learn.engine.precision import choose_compute
from gossipseg.learn.engine.sites import open_site
from gossipseg.learn.oneshot.pair_scores import (
    OneShot,
    PairScore,
    dice,
    one_shot,
    part_of,
    support_slices,
)
from gossipseg.learn.params import TaskParams
from gossipseg.learn.settings import read_settings
from gossipseg.nets.output import NetOutput
from tests.learn.harness import make_trainer
from tests.learn.imagery import GREY, png_site, spec_file, write_checkpoint, write_list, write_nifti
from tests.learn.imagery import spec as plain_spec
from tests.learn.oneshot_site import make_spec, write_scans

SIDE = 8
BACKGROUND, FIRST, SECOND, THIRD = range(4)
TASK = TaskParams(
    "parts", 4, {0: "background", 1: "organ", 2: "stone"}, patch_size=(SIDE, SIDE), slice_axis=2
)


class Colours(nn.Module):
    """A perfect encoder: the features of a pixel are its colours."""

    def forward(self, x: Tensor) -> NetOutput:
        assert not self.training
        return NetOutput(x)


def scan(
    name: str, looks: list[int | None], *, decoys: tuple[int, ...] = (), stone: int | None = None
) -> Item:
    """A volume whose organ, 4 rows high, looks so in each slice (None: none), in one of four colours.

    `decoys`: slices in which the same pixels look like the first part, but are not labelled.
    """
    image, label = (
        torch.zeros(4, SIDE, SIDE, len(looks)),
        torch.zeros(1, SIDE, SIDE, len(looks), dtype=torch.uint8),
    )
    for k, look in enumerate(looks):
        colour = FIRST if k in decoys else look
        image[BACKGROUND, :, :, k] = 1
        if colour is not None:
            image[BACKGROUND, 2:6, :, k], image[colour, 2:6, :, k] = 0, 1
        if look is not None:
            label[0, 2:6, :, k] = 1
        if k == stone:
            label[0, 2:6, :, k] = 2
    return Item(Case(name, Path(name)), image, label, None)


SHORT = [FIRST, SECOND, THIRD]
LONG = [None, FIRST, FIRST, SECOND, SECOND, THIRD, THIRD, None]


def run(*scans: Item, task: TaskParams = TASK, **options: Any) -> OneShot:
    return one_shot(Colours(), lambda: scans, task, "cpu", **options)


# ---------------------------------------------------------------- slices and parts


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        ([7], [7, 7, 7]),
        ([3, 4], [3, 4, 4]),
        ([3, 4, 5], [3, 4, 5]),
        (list(range(10, 40)), [15, 25, 35]),
        ([1, 2, 9, 10, 11, 12], [2, 10, 12]),
    ],
)
def test_support_slices_at_1_6_1_2_and_5_6(present: list[int], chosen: list[int]) -> None:
    assert support_slices(present) == chosen


def test_the_range_is_cut_into_three_and_what_is_outside_belongs_to_the_nearest() -> None:
    assert [part_of(k, 4, 9) for k in range(2, 12)] == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [part_of(k, 5, 5) for k in (4, 5, 6)] == [0, 0, 2]
    assert [part_of(k, 0, 3) for k in range(4)] == [0, 0, 1, 2]


def test_dice_of_masks() -> None:
    a, b = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, True])
    assert dice(a, b) == pytest.approx(2 / 5)


# ---------------------------------------------------------------- pairs


def test_each_slice_is_segmented_by_the_support_of_its_part() -> None:
    """The organ looks different in each third: any other support slice would miss it."""
    found = run(scan("short", SHORT), scan("long", LONG))
    assert [(p.support, p.query) for p in found.pairs] == [("long", "short"), ("short", "long")]
    for pair in found.pairs:
        assert pair.dice_range == {"organ": 1.0}
        assert pair.dice_volume == {"organ": 1.0}
    upside_down = run(scan("short", SHORT), scan("down", SHORT[::-1]))
    assert all(p.dice_range["organ"] == pytest.approx(0.5) for p in upside_down.pairs)


def test_a_mistake_outside_the_range_counts_in_the_volume_alone() -> None:
    found = run(scan("short", SHORT), scan("long", LONG, decoys=(0,)))
    by_short = next(p for p in found.pairs if p.query == "long")
    assert by_short.dice_range == {"organ": 1.0}
    assert by_short.dice_volume["organ"] == pytest.approx(2 * 6 / (6 + 7))


def test_classes_are_segmented_one_by_one_and_missing_ones_left_out() -> None:
    without = scan("without", SHORT)
    with_stone = scan("with", [FIRST, SECOND, THIRD, SECOND], stone=3)
    found = run(without, with_stone)
    by = {(p.support, p.query): p for p in found.pairs}
    assert by["without", "with"].dice_range.keys() == {"organ"}, "a support can give only what it has"
    assert by["with", "without"].dice_range == {"organ": pytest.approx(1.0), "stone": None}
    # the stone looks like the second part: one slice of four rows is taken for it
    assert by["with", "without"].false_positive_voxels == {"stone": 4 * SIDE}
    scores = found.scores(TASK)
    assert scores.per_class["stone"] is None
    assert scores.per_case[0].false_positive_voxels == {"stone": 4 * SIDE}


def test_a_class_that_the_tasks_grid_lost_counts_as_missed_and_ignored_voxels_nowhere() -> None:
    support = scan("support", [FIRST, SECOND, THIRD, SECOND], stone=3)
    query = scan("query", SHORT)
    assert query.label is not None
    lost = replace(query, truth=torch.full((9, 9, 9), 2, dtype=torch.uint8))
    pair = next(p for p in run(support, lost).pairs if p.query == "query")
    assert pair.dice_range["stone"] == pair.dice_volume["stone"] == 0.0
    assert pair.false_positive_voxels == {}
    label = query.label.clone()
    label[0, 2:4, :, 1] = IGNORE  # half of what is taken for the stone
    pair = next(p for p in run(support, replace(query, label=label)).pairs if p.query == "query")
    assert pair.false_positive_voxels == {"stone": 2 * SIDE}
    assert pair.dice_range["organ"] == pytest.approx(1.0)


def test_unlabelled_and_empty_scans() -> None:
    image = scan("unlabelled", SHORT)
    unlabelled = Item(image.case, image.image, None, None)
    empty = scan("empty", [None, None])
    shares: list[float] = []
    found = run(scan("a", SHORT), unlabelled, scan("b", LONG), empty, on_progress=shares.append)
    assert {(p.support, p.query) for p in found.pairs} == {
        ("a", "b"),
        ("b", "a"),
        ("a", "empty"),
        ("b", "empty"),
    }
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    assert run(unlabelled, scan("a", SHORT)).pairs == ()
    assert run(unlabelled).scores(TASK).mean is None


def test_isolated_slices_are_scans_of_one_slice() -> None:
    flat = [scan(name, [FIRST]) for name in "abc"]
    slices = [Item(s.case, s.image[..., 0], s.label[..., 0], None) for s in flat if s.label is not None]
    task = TaskParams("parts", 4, TASK.labels, patch_size=(SIDE, SIDE))
    found = run(*slices, task=task)
    assert len(found.pairs) == 6
    assert all(p.dice_range == p.dice_volume == {"organ": 1.0} for p in found.pairs)


def test_the_network_is_left_in_its_mode_and_predictions_are_shown() -> None:
    net = Colours().train()
    seen: list[tuple[str, str, Tensor]] = []
    scans = [scan("a", SHORT), scan("b", SHORT)]
    one_shot(
        net,
        lambda: scans,
        TASK,
        "cpu",
        on_prediction=lambda support, query, guess: seen.append((support, query.case.id, guess)),
    )
    assert net.training
    assert [(s, q) for s, q, _ in seen] == [("b", "a"), ("a", "b")]
    assert scans[0].label is not None
    assert torch.equal(seen[0][2], scans[0].label[0].movedim(-1, 0))


def test_slices_along_another_axis() -> None:
    turned = [
        Item(s.case, s.image.movedim(3, 1), s.label.movedim(3, 1), None)
        for s in (scan("a", SHORT), scan("b", LONG))
        if s.label is not None
    ]
    task = TaskParams("parts", 4, TASK.labels, patch_size=(SIDE, SIDE), slice_axis=0)
    assert all(p.dice_volume == {"organ": 1.0} for p in run(*turned, task=task).pairs)


# ---------------------------------------------------------------- means and spreads


def pair(support: str, query: str, in_range: float | None, volume: float | None) -> PairScore:
    wrong = {} if in_range is not None else {"organ": 10}
    return PairScore(support, query, {"organ": in_range}, {"organ": volume}, wrong)


THREE = OneShot(
    (
        pair("a", "b", 0.2, 0.1),
        pair("a", "c", 0.4, 0.1),
        pair("b", "a", 0.6, 0.2),
        pair("b", "c", 0.8, 0.4),
        pair("c", "a", 0.5, 0.5),
        pair("c", "b", 0.7, 0.3),
    )
)


def test_spread_over_the_supports() -> None:
    assert THREE.by_support("organ") == pytest.approx({"a": 0.3, "b": 0.7, "c": 0.6})
    found = THREE.spread("organ")
    assert found.mean == pytest.approx(1.6 / 3)
    assert found.std == pytest.approx(((0.2333**2 + 0.1667**2 + 0.0667**2) / 2) ** 0.5, abs=1e-3)
    assert (found.lowest, found.highest) == pytest.approx((0.3, 0.7))
    assert THREE.spread("organ", volume=True).mean == pytest.approx((0.1 + 0.3 + 0.4) / 3)
    alone = OneShot((pair("a", "b", 0.2, 0.1),)).spread("organ")
    assert (alone.mean, alone.std) == (0.2, None)


def test_scores_of_a_query_are_means_over_its_supports() -> None:
    task = TaskParams("one", 1, {0: "background", 1: "organ"})
    found = THREE.scores(task)
    assert {case.id: case.dice["organ"] for case in found.per_case} == pytest.approx(
        {"b": 0.45, "c": 0.6, "a": 0.55}
    )
    assert found.mean == pytest.approx(1.6 / 3)
    lacking = OneShot((pair("a", "b", None, None), pair("c", "b", None, None))).scores(task)
    assert lacking.mean is None
    assert lacking.per_case[0].false_positive_voxels == {"organ": 10}


# ---------------------------------------------------------------- in a trainer, and as a command


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scans(tmp_path_factory.mktemp("scans"), {"training": 2, "validation": 3, "test": 2})


def test_validation_and_test_of_a_trainer_are_one_shot(scans: Path, tmp_path: Path) -> None:
    spec = make_spec(scans, tmp_path, rounds=1, report_test=True)
    settings = read_settings(spec)
    site = open_site(settings, Dataset.open(spec), choose_compute(settings.device))
    trainer = make_trainer(spec, context=site)
    trainer.score_test_at_start(lambda text, share: None)
    done = trainer.run_round(protocol.StartRound(1))
    data = Dataset.open(spec)
    again = one_shot(trainer.model_state.ema, lambda: data.items("validation"), settings.task, "cpu")
    assert done.dice_val == pytest.approx(again.scores(settings.task).mean, abs=1e-4)
    assert len(again.pairs) == 6
    assert done.dice_val > 0.3
    assert done.dice_test is not None
    assert done.dice_test_start is not None


def test_the_patients_of_a_one_shot_site_are_those_of_the_queries(tmp_path: Path) -> None:
    """A scan without the organ is scored by the others, but supports none of them."""
    root = write_scans(tmp_path, {"training": 1, "validation": 3, "test": 1})
    empty = root / "labels" / "validation_1.nii.gz"
    image = np.asanyarray(nibabel.load(empty).dataobj)
    write_nifti(empty, np.zeros_like(image))
    for left in (3, 2, 1):
        lists = json.loads((root / "dataset.json").read_text())
        lists["validation"] = lists["validation"][:left]
        write_list(root, lists)
        spec = make_spec(root, tmp_path / "state")
        settings = read_settings(spec)
        site = open_site(settings, Dataset.open(spec), choose_compute(settings.device))
        model = make_trainer(spec, context=site).model_state.ema
        scored = [case.id for case in site.score(model, "validation", lambda share: None).per_case]
        assert scored == {3: [f"validation_{i}" for i in range(3)], 2: ["validation_1"], 1: []}[left]
        assert list(site.patients("validation")) == scored


def report(spec: Any, folder: Path, *more: str) -> tuple[int, dict[str, Any]]:
    out = folder / "out.json"
    code = main(["--spec", spec_file(folder, spec), "--json", str(out), *more])
    return code, json.loads(out.read_text()) if out.exists() else {}


def test_the_command_writes_the_full_table(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec(scans, tmp_path / "state")
    write_checkpoint(spec)
    pictures, table = tmp_path / "pictures", tmp_path / "table.csv"
    code, document = report(
        spec,
        tmp_path,
        "--split",
        "validation",
        "--csv",
        str(table),
        "--overlays",
        str(pictures),
        "--max-overlays",
        "2",
    )
    assert code == 0
    assert (document["kind"], document["protocol"], document["weights"]) == ("one_shot", "volumes", "ema")
    assert (document["scans"], document["round"]) == (3, 3)
    assert len(document["pairs"]) == 6
    assert [one["id"] for one in document["supports"]] == ["validation_1", "validation_2", "validation_0"]
    organ = document["per_class"]["organ"]
    by_support = [one["range"]["organ"] for one in document["supports"]]
    assert organ["range"]["mean"] == pytest.approx(sum(by_support) / 3)
    assert organ["range"]["lowest"] == min(by_support)
    assert organ["volume"]["mean"] <= organ["range"]["mean"]
    assert document["mean"] == {m: organ[m]["mean"] for m in ("range", "volume")}
    printed = capsys.readouterr().out
    assert "organ" in printed
    assert "3 supports" in printed
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 6
    assert float(rows[0]["dice_range"]) == pytest.approx(document["pairs"][0]["range"]["organ"], abs=1e-6)
    shown = sorted(pictures.iterdir())
    assert [p.name for p in shown] == ["validation_0.png", "validation_1.png"]
    with Image.open(shown[0]) as picture:
        assert picture.size[0] > 3 * 256 - 100


def test_evaluate_is_one_shot_where_the_algorithm_is(scans: Path, tmp_path: Path) -> None:
    spec = make_spec(scans, tmp_path / "state")
    write_checkpoint(spec)
    _, wanted = report(spec, tmp_path, "--split", "test")
    out = tmp_path / "evaluate.json"
    assert evaluate(["--spec", spec_file(tmp_path, spec), "--split", "test", "--json", str(out)]) == 0
    assert json.loads(out.read_text()) == wanted


@pytest.mark.parametrize("command", [predict, export])
def test_features_are_no_segmentation(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Any
) -> None:
    spec = make_spec(scans, tmp_path / "state")
    write_checkpoint(spec)
    image = str(scans / "images" / "test_0.nii.gz")
    images = [image] if command is predict else []
    assert command(["--spec", spec_file(tmp_path, spec), "-o", str(tmp_path / "out"), *images]) == 78
    assert "gossipctl evaluate" in capsys.readouterr().err


def test_slices_are_said_to_be_slices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_scans(tmp_path / "data", {"training": 1, "validation": 1, "test": 3}, flat=True)
    spec = make_spec(data, tmp_path / "state", flat=True)
    code, document = report(spec, tmp_path, "--initial", "--overlays", str(tmp_path / "pictures"))
    assert code == 0
    assert (document["protocol"], document["weights"]) == ("slices", "initial")
    assert "slice-level one-shot" in capsys.readouterr().out
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_refusals(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = write_scans(tmp_path / "few", {"training": 1, "validation": 1})
    code, _ = report(make_spec(few, tmp_path / "a"), tmp_path, "--initial", "--split", "validation")
    assert code == 65
    assert "needs a support and a query" in capsys.readouterr().err
    png_site(tmp_path / "png", {"training": 2, "validation": 2, "test": 2})
    code, _ = report(plain_spec(tmp_path / "png", GREY, tmp_path / "b"), tmp_path, "--initial")
    assert code == 78
    assert "gossipctl evaluate" in capsys.readouterr().err
