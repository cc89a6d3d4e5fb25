"""Pictures have one meaning, for image and mask alike: as they are shown, with the values that they hold."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from gossipseg.errors import DataError
from gossipseg.learn.data.cases import Case
from gossipseg.learn.data.dataset import load_item
from gossipseg.learn.data.formats.volume import Volume
from gossipseg.learn.data.readers import read_label, read_volume
from gossipseg.learn.params import TaskParams
from tests.learn.imagery import GREY, RGB, blob

SHAPE = (30, 22)


def colour() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)


def as_mask(file: Path) -> np.ndarray:
    found = read_label(file, 2, Volume(np.zeros((1, *SHAPE)), None, False, (), True))
    assert isinstance(found, Volume)
    return found.array


def save(file: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    picture = Image.fromarray(array)
    (picture if mode is None else picture.convert(mode)).save(file, **options)
    return file


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_an_exif_orientation_is_applied_to_image_and_mask(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / f"x{suffix}", blob(SHAPE, 0)[0], exif=exif)
    with Image.open(file) as picture:
        shown = np.asarray(ImageOps.exif_transpose(picture))
    found = read_volume(file, 2)
    assert np.array_equal(found.array[0], shown)
    mask = read_label(file, 2, found)
    assert isinstance(mask, Volume) and np.array_equal(mask.array[0], shown)
    assert any("EXIF orientation" in n for n in found.notes) == (orientation != 1)


def test_a_mask_drawn_on_the_picture_as_it_is_stored_is_told_of_the_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_volume(save(tmp_path / "x.jpg", blob(SHAPE, 0)[0], exif=exif), 2)
    mask = save(tmp_path / "m.png", blob(SHAPE, 0)[1])
    with pytest.raises(
        DataError, match=r"m\.png.*x\.jpg: turned as its EXIF orientation \(6\).*as it is stored"
    ):
        read_label(mask, 2, image)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_no_orientation_at_all_turns_nothing(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / "x.png", blob(SHAPE, 0)[0], exif=exif)
    assert np.array_equal(read_volume(file, 2).array[0], blob(SHAPE, 0)[0])


# ---------------------------------------------------------------- palettes


def packed(file: Path, indices: np.ndarray, colours: list[tuple[int, int, int]], **options: object) -> Path:
    picture = Image.new("P", indices.shape[::-1])
    picture.putpalette([c for rgb in colours for c in rgb])
    picture.putdata(indices.ravel().tolist())
    picture.save(file, **options)
    return file


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
INDICES = np.random.default_rng(5).integers(0, 3, SHAPE)


def test_a_coloured_palette_is_colours_to_a_network_and_labels_to_a_mask(tmp_path: Path) -> None:
    file = packed(tmp_path / "x.png", INDICES, VOC)
    assert np.array_equal(read_volume(file, 2).array, np.moveaxis(np.array(VOC)[INDICES], -1, 0))
    assert np.array_equal(as_mask(file)[0], INDICES)


def test_a_transparent_background_changes_no_mask(tmp_path: Path) -> None:
    file = packed(tmp_path / "x.png", INDICES, VOC, transparency=0)
    assert np.array_equal(as_mask(file)[0], INDICES)
    assert read_volume(file, 2).array.shape[0] == 4


@pytest.mark.parametrize("greys", [(0, 1, 2), (0, 128, 255), (10, 20, 30)])
def test_a_grey_palette_is_a_grey_picture(tmp_path: Path, greys: tuple[int, ...]) -> None:
    file = packed(tmp_path / "x.png", INDICES, [(g, g, g) for g in greys])
    assert np.array_equal(read_volume(file, 2).array[0], np.array(greys)[INDICES])
    assert np.array_equal(as_mask(file)[0], np.array(greys)[INDICES])


def test_a_grey_palette_that_is_turned_round_is_no_certain_mask(tmp_path: Path) -> None:
    file = packed(tmp_path / "x.png", INDICES, [(255,) * 3, (128,) * 3, (0,) * 3])
    assert np.array_equal(read_volume(file, 2).array[0], np.array([255, 128, 0])[INDICES])
    with pytest.raises(DataError, match=r"x\.png.*palette.*contradict"):
        as_mask(file)


# ---------------------------------------------------------------- channels and depth


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_where_it_hides_nothing(tmp_path: Path, mode: str) -> None:
    file = save(tmp_path / "x.png", colour(), mode)
    assert read_volume(file, 2).array.shape[0] == len(mode) - 1
    assert as_mask(file).shape[0] == len(mode) - 1


def test_a_real_transparency_is_refused(tmp_path: Path) -> None:
    array = np.dstack([colour(), np.full(SHAPE, 255, np.uint8)])
    array[:3, :, 3] = 0
    file = save(tmp_path / "x.png", array)
    with pytest.raises(DataError, match=r"x\.png.*4 channels \(RGBA\)"):
        load_item(Case("x", file), RGB)
    with pytest.raises(DataError, match=r"x\.png.*transparent in 10% of its pixels.*Flatten"):
        as_mask(file)


def test_sixteen_bit_grey_keeps_its_values(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 65536, SHAPE).astype(np.uint16)
    file = save(tmp_path / "x.png", array)
    assert np.array_equal(read_volume(file, 2).array[0], array)
    assert np.array_equal(as_mask(file)[0], array)


@pytest.mark.parametrize(("channels", "kind"), [(3, 2), (4, 6), (2, 4)])
def test_sixteen_bit_colour_keeps_its_values_or_is_refused(tmp_path: Path, channels: int, kind: int) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (*SHAPE, channels)).astype(np.uint16)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", SHAPE[1], SHAPE[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    file = tmp_path / "x.png"
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    if kind == 4:
        with pytest.raises(DataError, match="16 bits of grey and an alpha channel"):
            read_volume(file, 2)
        return
    assert np.array_equal(read_volume(file, 2).array, np.moveaxis(array, -1, 0))


def test_cmyk_is_read_as_rgb(tmp_path: Path) -> None:
    flat = np.full((*SHAPE, 3), (200, 40, 90), np.uint8)
    file = save(tmp_path / "x.jpg", flat, "CMYK", quality=100)
    found = read_volume(file, 2).array
    assert found.shape == (3, *SHAPE)
    assert np.abs(found.astype(int) - np.moveaxis(flat, -1, 0)).max() < 12


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_grey_saved_in_colour_is_grey_to_a_grey_task(tmp_path: Path, suffix: str) -> None:
    grey, label = blob((40, 44), 2)
    image = save(tmp_path / f"i{suffix}", np.dstack([grey] * 3))
    mask = save(tmp_path / "m.png", np.dstack([label] * 3))
    item = load_item(Case("i", image, mask), GREY)
    assert item.image.shape == (1, 40, 44)
    assert item.label is not None and np.array_equal(item.label[0].numpy(), label)
    assert load_item(Case("i", image, mask), RGB).image.shape == (3, 40, 44)


def test_colour_is_not_grey(tmp_path: Path) -> None:
    array = np.dstack([blob((40, 44), 2)[0]] * 3)
    array[5, 5, 1] ^= 1
    with pytest.raises(DataError, match="3 channels"):
        load_item(Case("i", save(tmp_path / "i.png", array)), GREY)


def test_one_bit_is_zero_and_one(tmp_path: Path) -> None:
    label = blob(SHAPE, 3)[1]
    for suffix in (".png", ".bmp"):
        file = save(tmp_path / f"x{suffix}", label * 255, "1")
        assert np.array_equal(as_mask(file)[0] > 0, label > 0)
    assert set(np.unique(as_mask(tmp_path / "x.png"))) == {0, 1}


# ---------------------------------------------------------------- files


def test_a_picture_under_another_picture_s_suffix_is_read_by_its_content(tmp_path: Path) -> None:
    grey = blob(SHAPE, 0)[0]
    Image.fromarray(grey).save(tmp_path / "x.jpg", format="PNG")
    Image.fromarray(grey).save(tmp_path / "y.png", format="TIFF")
    Image.fromarray(grey).save(tmp_path / "z.tif", format="PNG")
    for name in ("x.jpg", "y.png", "z.tif"):
        assert np.array_equal(read_volume(tmp_path / name, 2).array[0], grey)


def test_an_animation_is_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(blob(SHAPE, i)[0]) for i in range(3)]
    frames[0].save(tmp_path / "x.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="animated"):
        read_volume(tmp_path / "x.png", 2)


def test_another_kind_under_a_picture_s_suffix_is_refused(tmp_path: Path) -> None:
    Image.fromarray(blob(SHAPE, 0)[0]).save(tmp_path / "x.png", format="GIF")
    with pytest.raises(DataError, match=r"x\.png.*cannot be read"):
        read_volume(tmp_path / "x.png", 2)


def test_a_torn_jpeg_is_refused(tmp_path: Path) -> None:
    file = save(tmp_path / "x.jpg", colour(), quality=95)
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"x\.jpg.*truncated"):
        read_volume(file, 2)


def test_large_pictures_are_read_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # would refuse 660 pixels
    file = save(tmp_path / "x.png", blob(SHAPE, 0)[0])
    assert read_volume(file, 2).shape == SHAPE
    monkeypatch.setattr("gossipseg.learn.data.formats.pictures.MAX_PIXELS", 100)
    with pytest.raises(DataError, match="Cut it into tiles"):
        read_volume(file, 2)


def test_a_picture_is_no_volume(tmp_path: Path) -> None:
    task = TaskParams("t", 1, {0: "background", 1: "x"}, spatial_dims=3, patch_size=(16, 16, 16))
    with pytest.raises(DataError, match=r"2 dimensions.*3 spatial"):
        load_item(Case("x", save(tmp_path / "x.png", blob(SHAPE, 0)[0])), task)
