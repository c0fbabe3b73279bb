"""Formats without a decoder are named, with what helps; HEIC is read where pillow-heif is."""

from __future__ import annotations

import io
import struct
import sys
import tarfile

import numpy as np
import pytest
from fake_encoder import FakeEncoder
from PIL import Image

from chiasm.index import Query
from chiasm.index.query import encode_queries
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.errors import Undecodable, UsageError
from chiasm.pipeline.images import DecodeSettings, decode
from chiasm.pipeline.records import Dropped
from chiasm.pipeline.shards import ReadSettings, list_shards, read_samples
from chiasm.pipeline.storage import Folder

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400)
MP4 = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(100)
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
DNG = struct.pack("<2sHLHHHLL", b"II", 42, 8, 1, 50706, 1, 4, 0x0401) + bytes(40)


def refused(data: bytes) -> Undecodable:
    with pytest.raises(Undecodable) as caught:
        decode(data, DecodeSettings(), None)
    return caught.value


@pytest.fixture
def no_plugin(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


@pytest.mark.parametrize(
    ("data", "reason", "named"),
    [
        (HEIC, "unsupported", "HEIC: convert it to JPEG or PNG, or install pillow-heif"),
        (HEIC.replace(b"ftypheic", b"ftypmif1"), "unsupported", "HEIC: convert"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0miaf" + bytes(99), "unsupported", "HEIC: convert"),
        (b"\xff\x0a" + b"\x10" * 200, "unsupported", "JPEG XL: convert it to JPEG or PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100), "unsupported", "JPEG XL: convert"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(200), "unsupported", "camera raw (Canon CR2): conv"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "unsupported", "camera raw (Canon CR3): conv"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(99), "unsupported", "camera raw (Fuji RAF): convert"),
        (DNG, "unsupported", "camera raw (DNG): convert"),
        (SVG, "not_a_picture", "SVG: draw it as PNG"),
        (b"<?xml version='1.0'?>\n<!-- x -->" + SVG, "not_a_picture", "SVG: draw it as PNG"),
        (b"8BPS\0\1" + bytes(30), "", "PSD: "),  # Pillow's own decoder says what it is
        (b"8BPS\0\2" + bytes(200), "unsupported", "PSB: convert it to JPEG or PNG"),
        (b"%PDF-1.7\n" + bytes(99), "not_a_picture", "PDF"),
        (MP4, "not_a_picture", "video or sound (MP4 or MOV)"),
        (b"\x1a\x45\xdf\xa3" + bytes(99), "not_a_picture", "video (Matroska or WebM)"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(99), "not_a_picture", "video (AVI)"),
        (b"\n<!DOCTYPE html><html>403</html>", "not_a_picture", "a web page (HTML)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not_a_picture", "Git LFS pointer"),
        (b"what is this", "not_a_picture", "no decoder takes what begins with 77 68"),
    ],
)
def test_what_has_no_decoder_is_named(data, reason, named, no_plugin):
    failure = refused(data)
    assert failure.reason == reason or not reason
    assert failure.detail.startswith(named)


@pytest.mark.parametrize(
    ("extension", "named"),
    [
        ("jxl", "jxl (JPEG XL: convert it to JPEG or PNG)"),
        ("svg", "svg (SVG: draw it as PNG)"),
        ("psb", "psb (PSB: convert it to JPEG or PNG)"),
        ("exr", "exr (OpenEXR: convert it to JPEG or PNG)"),
        ("xcf", "xcf (XCF: convert it to JPEG or PNG)"),
        ("CR2", "cr2 (camera raw (Canon CR2): convert it to JPEG or PNG)"),
        ("nef", "nef (camera raw (Nikon): convert it to JPEG or PNG)"),
        ("dng", "dng (camera raw (DNG): convert it to JPEG or PNG)"),
        ("mp4", "mp4 (video or sound (MP4 or MOV))"),
    ],
)
def test_what_is_not_read_by_its_extension_is_named(extension, named, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in (f"0.{extension}", "0.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    [shard] = list_shards([str(tmp_path / "a.tar")])
    [item] = read_samples(shard, ReadSettings())
    assert isinstance(item, Dropped)
    assert (item.reason, item.detail) == ("extension", named)


def test_names_never_hide_a_decoder():
    """A TIFF and an AVIF that are broken are said to be broken."""
    tiff, avif = io.BytesIO(), io.BytesIO()
    Image.effect_noise((64, 64), 90).save(tiff, "TIFF")
    Image.effect_noise((64, 64), 90).convert("RGB").save(avif, "AVIF")
    assert refused(tiff.getvalue()[:2000] + tiff.getvalue()[-200:]).detail.startswith("TIFF: ")
    assert refused(avif.getvalue()[:-600]).detail.startswith("AVIF: ")


def test_the_name_is_in_the_drops_of_a_shard_and_in_the_line_of_a_query(tmp_path, no_plugin):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("1.jpg", HEIC), ("2.heic", HEIC), ("3.jpg", SVG), ("3.txt", b"a")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (shard,) = list_shards([str(tmp_path / "a.tar")])
    folder = Folder(str(tmp_path / "c"))
    entry = embed_shard(shard, FakeEncoder(), folder, EmbedSettings(), run_id="r1")
    heic = "HEIC: convert it to JPEG or PNG, or install pillow-heif"
    assert [(drop.key, drop.stage, drop.reason, drop.detail) for drop in entry.dropped] == [
        ("1", "decode", "unsupported", heic),
        ("2", "decode", "unsupported", heic),
        ("3", "decode", "not_a_picture", "SVG: draw it as PNG"),
    ]
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(UsageError) as caught:
        encode_queries([Query(image=tmp_path / "a.heic")], FakeEncoder(), 8)
    line = f"{tmp_path / 'a.heic'}: expected a picture, found unsupported: {heic}"
    assert str(caught.value) == line


@pytest.fixture
def heif():
    """The package, which only the extra `heif` brings."""
    return pytest.importorskip("pillow_heif")


def heic(heif, image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    heif.from_pillow(image).save(out, **options)
    return out.getvalue()


def coloured(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 4, y * 5, 0 * x], axis=-1).astype(np.uint8))


def test_a_heic_is_read_upright_on_white_and_nothing_is_registered(heif):
    before = set(Image.OPEN)
    image = coloured(64, 48)
    picture = decode(heic(heif, image), DecodeSettings(), 16)
    assert (picture.width, picture.height) == picture.image.size == (64, 48)
    assert np.abs(np.asarray(picture.image, int) - np.asarray(image, int)).max() < 16
    assert np.ptp(np.asarray(picture.image)) > 200 and picture.image.mode == "RGB"

    exif = Image.Exif()
    exif[0x112] = 6
    turned = decode(heic(heif, image, exif=exif.tobytes()), DecodeSettings(), None)
    assert (turned.width, turned.height) == turned.image.size == (48, 64)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(turned.image, int) - np.asarray(upright, int)).max() < 16

    clear = image.convert("RGBA")
    clear.putalpha(0)
    assert decode(heic(heif, clear), DecodeSettings(), None).image.getpixel((5, 5)) == (255,) * 3
    assert set(Image.OPEN) == before


def test_limits_hold_before_the_pixels_of_a_heic_are_decoded(heif, monkeypatch):
    data = heic(heif, Image.new("RGB", (1200, 1000)))
    monkeypatch.setattr(heif.HeifImageFile, "load", lambda self: pytest.fail("was decoded"))
    with pytest.raises(Undecodable, match="1200 x 1000") as caught:
        decode(data, DecodeSettings(max_megapixels=1), 16)
    assert caught.value.reason == "too_many_pixels"
    monkeypatch.undo()
    # A header that says less than there is: libheif refuses it before it has room for its pixels.
    at = data.index(b"ispe") + 8
    small = data[:at] + struct.pack(">II", 64, 64) + data[at + 8 :]
    assert "exceeds the maximum image size" in refused(small).detail


def test_a_broken_heic_has_a_reason(heif):
    data = heic(heif, coloured(64, 48))
    assert [refused(data[:size]).reason for size in (len(data) - 20, len(data) // 2, 40)] == [
        "truncated"
    ] * 3
    assert refused(data.replace(b"pitm", b"mtip")).reason == "corrupt"
