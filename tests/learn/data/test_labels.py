"""What numbers in label files mean, and which numbers predictions are written with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gossipseg.errors import ConfigError, DataError
from gossipseg.learn.commands.predict import written_values
from gossipseg.learn.data import own_values
from gossipseg.learn.data.dataset import Dataset
from gossipseg.learn.data.formats.volume import Segment, Segmentation, Volume
from gossipseg.learn.data.labels import IGNORE, LabelRule, label_rule, map_labels, notes_of, values_of
from gossipseg.learn.params import DataParams, TaskParams
from tests.learn.imagery import GREY, VOLUME, nifti_site, png_site, spec, write_png

FILE = Path("labels/p0.nii.gz")


def rule(task: TaskParams = VOLUME, **data: object) -> LabelRule:
    return label_rule(task, DataParams("d", **data))  # type: ignore[arg-type]


def test_a_jpeg_of_a_mask_is_told_to_be_lossy_however_few_its_values_are() -> None:
    array = np.array([[[0, 3, 252, 255]]], np.uint8)
    for name, said in (("l.JPG", "lossy"), ("l.png", "task.label_map in")):
        with pytest.raises(DataError, match=said):
            map_labels(array, rule(GREY), Path(name))


@pytest.mark.parametrize("wide", [np.float32, np.float64])
def test_values_near_whole_numbers_are_those(wide: type) -> None:
    """1/255 times 255 is 1.0000000591 in float32, and 65535/65535 may be 0.99999."""
    array = np.array([[[0.0, 1.0000000591, 0.99999, 2.0004]]], dtype=wide)
    assert map_labels(array, VOLUME, FILE).tolist() == [[0, 1, 1, 2]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 0.5], ["no whole numbers", "0.5", "without interpolation"]),
        ([0, 1.0012], ["no whole numbers", "1.0012"]),
        ([0, float("nan")], ["NaN"]),
        ([0, float("inf")], ["infinite"]),
        ([0, 7], ["label values 7 are not among the task's (0, 1, 2)", "data.label_map"]),
        ([*range(13), *range(243, 256)], ["3…12 and 243…255", "lossy or soft-edged", "PNG"]),
    ],
)
def test_other_values_are_refused_with_what_matters(values: list[float], words: list[str]) -> None:
    array = np.array([[values]], dtype=np.float64)
    with pytest.raises(DataError) as caught:
        map_labels(array, VOLUME, FILE)
    text = str(caught.value)
    assert text.startswith(str(FILE)) and all(word in text for word in words), text
    assert len(text) < 500


def test_complex_values_and_colours_are_refused() -> None:
    with pytest.raises(DataError, match="complex"):
        map_labels(np.zeros((1, 2, 2), dtype=np.complex64), GREY, FILE)
    with pytest.raises(DataError, match="colour"):
        map_labels(np.arange(12).reshape(3, 2, 2), GREY, FILE)
    grey_as_rgb = np.repeat(np.array([[[0, 1]]]), 3, axis=0)
    assert map_labels(grey_as_rgb, GREY, FILE).tolist() == [[0, 1]]


def test_large_and_negative_values_are_looked_up() -> None:
    found = rule(label_map={-1: 0, 2_000_000: 2, 1_000: 1})
    array = np.array([[[-1, 1_000, 2_000_000, 0]]], dtype=np.int32)
    assert map_labels(array, found, FILE).tolist() == [[0, 1, 2, 0]]
    assert map_labels(array.astype(np.float64), found, FILE).tolist() == [[0, 1, 2, 0]]


def test_the_sites_own_map_goes_before_the_tasks() -> None:
    task = TaskParams("t", 1, {0: "b", 1: "l"}, label_map={2: 1})
    assert map_labels(np.array([[[2]]]), rule(task), FILE).tolist() == [[1]]
    assert map_labels(np.array([[[2]]]), rule(task, label_map={2: 0}), FILE).tolist() == [[0]]


def test_an_ignored_value_is_of_no_class() -> None:
    array = np.array([[[0, 1, 99]]])
    assert map_labels(array, rule(ignore_label=99), FILE).tolist() == [[0, 1, IGNORE]]
    with pytest.raises(DataError, match="99"):
        map_labels(array, rule(), FILE)


def test_a_class_that_is_not_annotated_is_not_drawn() -> None:
    only_liver = rule(annotated_labels=(1,))
    assert only_liver.partial and not rule().partial
    assert map_labels(np.array([[[0, 1]]]), only_liver, FILE).tolist() == [[0, 1]]
    counts: Counter[int] = Counter()
    assert map_labels(np.array([[[0, 2, 1]]]), only_liver, FILE, counts).tolist() == [[0, 0, 1]]
    said = notes_of(Volume(np.zeros((1, 1, 3)), None), only_liver, FILE, counts)
    assert len(said) == 1 and "spleen" in said[0] and "data.annotated_labels" in said[0]
    both = segmentation("liver", "spleen")
    assert values_of(both, only_liver, FILE).ravel().tolist() == [1, 0, 0, 0]
    assert "spleen" in notes_of(both, only_liver, FILE, {})[0]


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"annotated_labels": (3,)}, "data.annotated_labels"),
        ({"annotated_labels": (0,)}, "data.annotated_labels"),
        ({"annotated_labels": ()}, "data.annotated_labels"),
        ({"label_map": {4: 3}}, "data.label_map.4"),
        ({"segments": {"GTV": 9}}, "data.segments.GTV"),
        ({"label_map_out": {9: 1}}, "data.label_map_out"),
        ({"label_map_out": {1: 7, 2: 7}}, "data.label_map_out"),
        ({"label_map_out": {1: 70_000}}, "data.label_map_out"),
        ({"label_map": {4: 1}, "ignore_label": 4}, "data.ignore_label"),
    ],
)
def test_what_does_not_go_with_the_task_is_refused(data: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rule(**data)
    assert caught.value.key == key and caught.value.remedy


# ---------------------------------------------------------------- segments


def segmentation(*names: str, arbitrary: bool = False, overlap: bool = False) -> Segmentation:
    segments = []
    for i, name in enumerate(names):
        mask = np.zeros((4, 1, 1), bool)
        mask[i] = True
        if overlap:
            mask[3] = True
        segments.append(Segment(i + 1, name, mask))
    return Segmentation(tuple(segments), (4, 1, 1), np.eye(4), numbers_are_arbitrary=arbitrary)


@pytest.mark.parametrize(
    ("names", "data", "expected"),
    [
        (("spleen", "Liver"), {}, [2, 1, 0, 0]),  # names go before numbers
        (("x", "y"), {}, [1, 2, 0, 0]),  # numbers are label values
        (("GTV", "BODY"), {"segments": {"gtv": 2}}, [2, 0, 0, 0]),
    ],
)
def test_segments_are_classes_by_name_else_by_number(
    names: tuple[str, ...], data: dict[str, object], expected: list[int]
) -> None:
    assert values_of(segmentation(*names), rule(**data), FILE).ravel().tolist() == expected


def test_numbers_that_mean_nothing_are_not_taken_for_classes() -> None:
    with pytest.raises(DataError, match=r"'BODY'.*data|data.segments"):
        values_of(segmentation("BODY", "PTV", arbitrary=True), rule(), FILE)


def layered(*segments: tuple[str, int]) -> Segmentation:
    """Segments by name and number, each on a voxel of its own."""
    masks = np.eye(len(segments), dtype=bool)[..., None, None]
    found = (Segment(n, name, mask) for (name, n), mask in zip(segments, masks, strict=True))
    return Segmentation(tuple(found), (len(segments), 1, 1), np.eye(4))


def test_segments_of_two_layers_may_have_one_number() -> None:
    both = layered(("liver", 1), ("spleen", 1), ("BODY", 1))
    assert values_of(both, rule(), FILE).ravel().tolist() == [1, 2, 0]
    assert "'BODY'" in notes_of(both, rule(), FILE, {})[0]
    with pytest.raises(DataError, match=r"no segment has the name.*1 'a', 1 'b'"):
        values_of(layered(("a", 1), ("b", 1)), rule(), FILE)


def test_segments_that_are_not_used_are_named() -> None:
    found = notes_of(segmentation("liver", "BODY"), rule(), FILE, {})
    assert len(found) == 1 and "'BODY'" in found[0] and str(FILE) in found[0]
    assert notes_of(segmentation("liver", "spleen"), rule(), FILE, {}) == ()


@pytest.mark.parametrize(
    ("names", "data", "expected"),
    [
        (("a", "b"), {"ignore_label": 2}, [1, IGNORE, IGNORE, 0]),
        (("liver", "unsure"), {"ignore_label": 2}, [1, IGNORE, IGNORE, 0]),
        (("liver", "unsure"), {"ignore_label": 9, "segments": {"unsure": 9}}, [1, IGNORE, IGNORE, 0]),
        (("liver", "spleen"), {"ignore_label": 2}, [1, 2, 2, 0]),
    ],
)
def test_a_segment_is_ignored_by_its_number_or_its_name(
    names: tuple[str, ...], data: dict[str, object], expected: list[int]
) -> None:
    parts = segmentation(*names).segments
    masks = ((1, 1, 0, 0) if names[1] != "spleen" else (1, 0, 0, 0), (0, 1, 1, 0))
    moved = [
        Segment(p.number, p.name, np.array(m, bool).reshape(4, 1, 1))
        for p, m in zip(parts, masks, strict=True)
    ]
    both = Segmentation(tuple(moved), (4, 1, 1), np.eye(4))
    assert values_of(both, rule(**data), FILE).ravel().tolist() == expected
    assert notes_of(both, rule(**data), FILE, {}) == ()


def test_two_classes_on_one_voxel_are_refused_and_one_is_not() -> None:
    with pytest.raises(DataError, match="share 1 voxels"):
        values_of(segmentation("liver", "spleen", overlap=True), rule(), FILE)
    both = rule(segments={"left": 1, "right": 1})
    assert values_of(segmentation("left", "right", overlap=True), both, FILE).ravel().tolist() == [1, 1, 0, 1]


# ---------------------------------------------------------------- predictions


def test_predictions_have_the_values_of_the_sites_own_labels() -> None:
    task = TaskParams("t", 1, {0: "b", 1: "l", 2: "m"}, label_map={255: 1, 4: 2, 128: 1})
    counts = Counter({0: 900, 255: 30, 128: 40, 4: 5})
    assert own_values.out_values(task, DataParams("d"), counts) == {0: 0, 1: 128, 2: 4}
    assert own_values.out_values(task, DataParams("d", label_map_out={1: 255}), counts)[1] == 255
    said = own_values.several_text(task, DataParams("d"), counts)
    assert len(said) == 1 and "128 (40 voxels), 255 (30 voxels)" in said[0] and "written with 128" in said[0]


def test_a_class_that_no_label_holds_gets_the_one_value_that_maps_to_it() -> None:
    task = TaskParams("t", 1, {0: "b", 1: "l", 2: "m"}, label_map={4: 2})
    assert own_values.out_values(task, DataParams("d"), Counter({0: 5, 1: 1})) == {0: 0, 1: 1, 2: 4}
    assert own_values.out_values(VOLUME, DataParams("d"), Counter()) == {0: 0, 1: 1, 2: 2}


def test_two_classes_never_get_one_value() -> None:
    task = TaskParams("t", 1, {0: "b", 1: "l", 2: "m"}, label_map={2: 1})
    with pytest.raises(ConfigError, match=r"data\.label_map_out.*'l' and 'm'"):
        own_values.out_values(task, DataParams("d"), Counter({0: 5, 2: 9}))


def test_no_class_is_written_as_the_value_of_the_unknown() -> None:
    task = TaskParams("t", 1, {0: "b", 1: "l", 2: "m"})
    for data in (DataParams("d", ignore_label=2), DataParams("d", ignore_label=9, label_map_out={2: 9})):
        with pytest.raises(ConfigError, match=r"data\.label_map_out.*'m'.*not known"):
            own_values.out_values(task, data, Counter({0: 5, 1: 9}))
    data = DataParams("d", ignore_label=2, label_map_out={2: 7})
    assert own_values.out_values(task, data, Counter({0: 5})) == {0: 0, 1: 1, 2: 7}


def test_values_above_255_are_written_in_two_bytes() -> None:
    labels = np.array([0, 1], dtype=np.uint8)
    found = written_values(labels, {0: 0, 1: 2035})
    assert found.dtype == np.uint16 and found.tolist() == [0, 2035]
    assert written_values(labels, {0: 0, 1: 255}).dtype == np.uint8


def test_a_site_keeps_the_values_of_its_labels(tmp_path: Path) -> None:
    png_site(tmp_path, {"training": 2, "validation": 1})
    task = TaskParams("blobs", 1, {0: "background", 1: "blob"}, patch_size=(32, 32), label_map={255: 1})
    for file in (tmp_path / "masks").iterdir():
        write_png(file, np.eye(48, 40, dtype=np.uint8) * 255)
    made = spec(tmp_path, task)
    assert own_values.kept(Path(made.state_dir), DataParams(**made.data)) is None
    data = Dataset.open(made)
    found = own_values.kept(Path(made.state_dir), DataParams(**made.data))
    assert found is not None and found[255] == 3 * 40
    assert own_values.out_values(task, DataParams(str(tmp_path)), found) == {0: 0, 1: 255}
    assert own_values.counted((case for _, case in data.splits), task) == found
    assert own_values.kept(Path(made.state_dir), DataParams(str(tmp_path / "others"))) is None


def test_a_site_reads_by_its_own_rule(tmp_path: Path) -> None:
    nifti_site(tmp_path, {"training": 1, "validation": 1})
    made = spec(tmp_path, VOLUME, data={"ignore_label": 2})
    data = Dataset.open(made)
    item = data.item("validation", 0)
    assert item.label is not None and item.truth is not None
    assert set(np.unique(item.label.numpy())) == {0, 1, IGNORE} == set(np.unique(item.truth.numpy()))
    partly = Dataset.open(spec(tmp_path, VOLUME, data={"annotated_labels": [1]})).item("validation", 0)
    assert partly.label is not None and set(np.unique(partly.label.numpy())) == {0, 1}
    assert any("spleen" in note for note in partly.notes)


def test_a_volume_is_read_by_its_numbers() -> None:
    counts: Counter[int] = Counter()
    values_of(Volume(np.array([[[0, 1], [1, 2]]]), None), rule(), FILE, counts)
    assert counts == {0: 1, 1: 2, 2: 1}


def test_check_tells_that_predictions_cannot_be_written() -> None:
    """A site that annotates one class alone, with the number that another has in the task."""
    found = {"label_map": {1: 2}, "annotated_labels": [2]}
    counts = Counter({0: 90, 1: 10})
    task = TaskParams("t", 1, {0: "background", 1: "organ", 2: "tumour"})
    (said,) = own_values.several_text(task, DataParams("d", **found), counts)  # type: ignore[arg-type]
    assert "will write no label maps" in said and "data.label_map_out" in said
    mended = DataParams("d", **found, label_map_out={1: 3})  # type: ignore[arg-type]
    assert own_values.several_text(task, mended, counts) == []
