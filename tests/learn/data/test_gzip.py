"""Compressed files are read to their checksum; truncated, damaged and empty files are named."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from gossipseg.errors import DataError
from gossipseg.learn.data.readers import read_volume
from tests.learn.imagery import blob, write_nifti, write_png

SHAPE = (12, 10, 8)


def values() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 40, SHAPE).astype(np.int16)


def as_nifti(folder: Path) -> Path:
    return write_nifti(folder / "a.nii.gz", values())


def as_mgz(folder: Path) -> Path:
    nibabel.save(nibabel.freesurfer.MGHImage(values(), np.eye(4)), folder / "a.mgz")
    return folder / "a.mgz"


def by_itk(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        sitk.WriteImage(sitk.GetImageFromArray(values()), str(folder / name), True)
        return folder / name

    return write


COMPRESSED = {
    "nii.gz": as_nifti,
    "mgz": as_mgz,
    "mha": by_itk("a.mha"),
    "mhd": by_itk("a.mhd"),
    "nrrd": by_itk("a.nrrd"),
    "nhdr": by_itk("a.nhdr"),
}
VOXELS = {"mhd": "a.zraw", "nhdr": "a.raw.gz"}
every = pytest.mark.parametrize("kind", COMPRESSED)


def written(folder: Path, kind: str) -> tuple[Path, Path]:
    """The image, and the file that its voxels are in."""
    image = COMPRESSED[kind](folder)
    return image, folder / VOXELS.get(kind, image.name)


def refusal(path: Path, dims: int = 3) -> str:
    with pytest.raises(DataError) as caught:
        read_volume(path, dims)
    return str(caught.value)


@every
def test_a_good_file_is_read(tmp_path: Path, kind: str) -> None:
    image, _ = written(tmp_path, kind)
    found = read_volume(image, 3).array[0]
    assert np.array_equal(found, values() if kind in ("nii.gz", "mgz") else values().transpose())


@every
@pytest.mark.parametrize("part", [0.4, 0.7, 0.95])
def test_one_damaged_byte_is_named(
    tmp_path: Path, kind: str, part: float, capfd: pytest.CaptureFixture[str]
) -> None:
    image, voxels = written(tmp_path, kind)
    data = bytearray(voxels.read_bytes())
    head = voxels.read_bytes().find(b"LOCAL") if kind == "mha" else 0
    data[head + int(part * (len(data) - head))] ^= 0xFF
    voxels.write_bytes(data)
    text = refusal(image)
    assert voxels.name in text and "damaged" in text
    assert capfd.readouterr() == ("", "")


@every
def test_a_wrong_checksum_alone_is_named(tmp_path: Path, kind: str) -> None:
    image, voxels = written(tmp_path, kind)
    data = bytearray(voxels.read_bytes())
    # gzip ends with CRC-32 and length, zlib with Adler-32.
    data[-6 if kind not in ("mha", "mhd") else -2] ^= 0x01
    voxels.write_bytes(data)
    assert "its checksum is wrong" in refusal(image)


@every
@pytest.mark.parametrize("cut", [1, 9, 300])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, cut: int) -> None:
    image, voxels = written(tmp_path, kind)
    voxels.write_bytes(voxels.read_bytes()[:-cut])
    assert "truncated" in refusal(image)


@every
def test_other_bytes_after_the_end_are_named(tmp_path: Path, kind: str) -> None:
    image, voxels = written(tmp_path, kind)
    voxels.write_bytes(voxels.read_bytes() + b"appended by a broken transfer")
    assert "after the end of its compressed stream" in refusal(image)


@every
def test_an_empty_file_is_named(tmp_path: Path, kind: str) -> None:
    image, voxels = written(tmp_path, kind)
    voxels.write_bytes(b"")
    assert "is empty (0 bytes)" in refusal(image)


@pytest.mark.parametrize("name", ["a.nii", "a.png", "a.tif", "a.jpg", "a.mhd", "a.bmp"])
def test_an_empty_file_of_any_kind_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "is empty (0 bytes)" in refusal(tmp_path / name, 2)


def test_a_wrong_length_in_the_trailer_is_named(tmp_path: Path) -> None:
    file = as_nifti(tmp_path)
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x01
    file.write_bytes(data)
    assert "its length is wrong (gzip)" in refusal(file)


def test_streams_in_a_row_and_zeros_after_them_are_gzip(tmp_path: Path) -> None:
    plain = gzip.decompress(as_nifti(tmp_path).read_bytes())
    members = [plain[:500], plain[500:777], b"", plain[777:]]
    file = tmp_path / "b.nii.gz"
    file.write_bytes(b"".join(gzip.compress(m) for m in members) + bytes(700))
    assert np.array_equal(read_volume(file, 3).array[0], values())


def test_many_chunks(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 255, (140, 130, 120)).astype(np.uint8)
    file = write_nifti(tmp_path / "big.nii.gz", noise)
    assert file.stat().st_size > 2 << 20
    assert np.array_equal(read_volume(file, 3).array[0], noise)


def test_the_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    packed = as_nifti(tmp_path).read_bytes()
    (tmp_path / "packed.nii").write_bytes(packed)
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(packed))
    for name in ("packed.nii", "plain.nii.gz"):
        assert np.array_equal(read_volume(tmp_path / name, 3).array[0], values())


@pytest.mark.parametrize("cut", [1, 1000, 1700])
def test_an_uncompressed_file_shorter_than_its_header_says_is_named(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "a.nii"
    file.write_bytes(gzip.decompress(as_nifti(tmp_path).read_bytes())[:-cut])
    text = refusal(file)
    assert "truncated" in text and f"1920 bytes of voxels, it holds {1920 - cut}" in text


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.mhd", "a.nhdr"])
def test_raw_voxels_are_counted(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(values()), str(tmp_path / name), False)
    voxels = tmp_path / "a.raw" if (tmp_path / "a.raw").exists() else tmp_path / name
    whole = voxels.read_bytes()
    voxels.write_bytes(whole + bytes(100))
    assert read_volume(tmp_path / name, 3).shape == values().shape[::-1]
    voxels.write_bytes(whole + bytes(600))
    assert "does not fit the voxels" in refusal(tmp_path / name)
    voxels.write_bytes(whole[:-2])
    assert "truncated" in refusal(tmp_path / name)
    if voxels.name == "a.raw":
        voxels.unlink()
        assert "no file a.raw beside it" in refusal(tmp_path / name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"/annex/objects/MD5E-s9--1.nii.gz\n", "git annex get"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"\x1f\x8b not gzip at all", "damaged"),
        (b"some text", "no NIfTI header"),
    ],
)
def test_what_is_no_image_at_all_is_told_apart(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.nii.gz").write_bytes(content)
    assert words in refusal(tmp_path / "a.nii.gz")


def test_a_png_is_read_to_its_checksums(tmp_path: Path) -> None:
    file = write_png(tmp_path / "a.png", blob((40, 30), 0)[0])
    good = file.read_bytes()
    data = bytearray(good)
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)
    assert "its checksum is wrong (PNG CRC)" in refusal(file, 2)
    file.write_bytes(good[:-12])
    assert "truncated" in refusal(file, 2)


def test_a_tiff_is_read_to_its_last_page(tmp_path: Path) -> None:
    pages = np.random.default_rng(0).integers(0, 255, (6, 20, 30)).astype(np.uint8)
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, pages, photometric="minisblack", metadata=None)
    good = file.read_bytes()
    assert np.array_equal(read_volume(file, 3).array[0], np.moveaxis(pages, 0, -1))
    for cut in (60, 1500, 3000, len(good) - 40):
        file.write_bytes(good[:-cut])
        for dims in (2, 3):  # of a torn chain of pages the first is left, which is no picture by itself
            refusal(file, dims)


def test_a_damaged_tiff_stream_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, values()[..., 0], compression="zlib")
    data = bytearray(file.read_bytes())
    at = data.find(zlib.compress(b"")[:1], 100)
    data[at + 40] ^= 0xFF
    file.write_bytes(data)
    assert "cannot be read" in refusal(file, 2)
