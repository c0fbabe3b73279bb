"""From bytes to pixels the fast way: Pillow's verdicts, Pillow's pixels, and sRGB."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from icc import cmyk_profile, edited, grey_profile, wide_profile
from PIL import Image, ImageCms, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from chiasm.index import build_index
from chiasm.index.verify import check
from chiasm.pipeline.batches import SampleDecoder
from chiasm.pipeline.collection import embeddings, entries
from chiasm.pipeline.editions import EmbedSettings, edition_of
from chiasm.pipeline.encoders import load_encoder
from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.images import DecodeSettings, colour, decode
from chiasm.pipeline.images.formats import open_picture
from chiasm.pipeline.images.headers import bare_jpeg_size
from chiasm.pipeline.images.jpeg import decode_opened
from chiasm.pipeline.make import make_collection
from chiasm.pipeline.pretrained import EncoderSettings
from chiasm.pipeline.pretrained.image_processing import Scale, SquareProcessing
from chiasm.pipeline.records import Place, Sample, Source
from chiasm.pipeline.resizing import by_pillow, resize
from chiasm.pipeline.shards import write_shard
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.timing import Stopwatch

FAST, EXACT = DecodeSettings(), DecodeSettings(exact=True)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WIDE, GREY, CMYK = wide_profile(), grey_profile(), cmyk_profile()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Rough enough that every coefficient of a JPEG counts."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), 3), np.float32)
    return Image.fromarray((smooth + chance.normal(0, 9, smooth.shape)).clip(0, 255).astype("u1"))


def jpeg(image: Image.Image, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def outcome(data: bytes, chosen: DecodeSettings, target: int | None = None, decoding: int = 2):
    """The pixels and the size, or why there are none."""
    try:
        picture = decode(data, chosen, target, decoding)
    except Undecodable as failure:
        return failure.reason, failure.detail
    return picture.pixels.tolist(), (picture.width, picture.height)


def by_simplejpeg(data: bytes) -> np.ndarray | None:
    image, _ = open_picture(data, 20)
    assert isinstance(image, JpegImageFile)
    return decode_opened(image, data)


PLAIN = {
    "4:2:0": {},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4", "quality": 100},
    "4:1:1": {"subsampling": "4:1:1"},
    "low quality": {"quality": 5},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "progressive 4:4:4": {"progressive": True, "subsampling": "4:4:4"},
    "restart markers": {"restart_marker_blocks": 2},
    "RGB": {"keep_rgb": True},
    "a comment": {"comment": b"x" * 60_000},
    "EXIF": {"exif": Image.Exif()},
    "sRGB": {"icc_profile": SRGB},
}
SIZES = [(1, 1), (16, 1), (1, 16), (2, 3), (17, 33), (8, 8), (120, 90)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("options", PLAIN.values(), ids=PLAIN)
def test_a_common_jpeg_has_the_pixels_of_pillow(options, size):
    data = jpeg(noise(*size), **options)
    made = by_simplejpeg(data)
    assert made is not None
    np.testing.assert_array_equal(made, decode(data, EXACT, None).pixels)
    assert outcome(data, FAST) == outcome(data, EXACT)


def test_pillow_opens_what_has_more_than_tables_in_its_header():
    bare = {name for name, made in PLAIN.items() if bare_jpeg_size(jpeg(noise(17, 33), **made))}
    assert bare == set(PLAIN) - {"EXIF", "sRGB"}
    assert bare_jpeg_size(jpeg(noise(17, 33))) == (17, 33)
    bare = {name for name, data in ODD.items() if bare_jpeg_size(data)}
    assert bare & {"huge", "taller", "trailing bytes", "Adobe RGB", "a bit changed", "cut at -1"}
    assert not bare & {name for name in ODD if name.startswith(("short", "broken", "inks", "12"))}


def test_a_grey_jpeg_and_a_scaled_one_have_the_pixels_of_pillow():
    grey = jpeg(noise(90, 60).convert("L"))
    assert by_simplejpeg(grey) is not None and outcome(grey, FAST) == outcome(grey, EXACT)
    scaled = DecodeSettings(scaled=True), DecodeSettings(scaled=True, exact=True)
    for size in ((640, 480), (641, 479), (333, 257)):
        for target in (20, 30, 60, 100):
            data = jpeg(noise(*size))
            fast, slow = (decode(data, chosen, target) for chosen in scaled)
            np.testing.assert_array_equal(fast.pixels, slow.pixels)
            assert (fast.width, fast.height) == size


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    """A JPEG with one segment more at its beginning."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


def odd_jpegs() -> dict[str, bytes]:
    image = noise(56, 40)
    base, slow = jpeg(image), jpeg(image, progressive=True)
    scan = base.index(b"\xff\xda")
    frame = base.index(b"\xff\xc0")
    size = {
        name: base[: frame + 5] + struct.pack(">HH", *sides) + base[frame + 9 :]
        for name, sides in {
            "huge": (65_500, 65_500),
            "no height": (0, 56),
            "taller": (80, 56),
        }.items()
    }
    cuts = {f"cut at {n}": base[:n] for n in (3, 20, frame + 4, scan + 3, scan + 40, -200, -2, -1)}
    ends = {f"progressive, cut at {n}": slow[:n] for n in (400, -300, -2)}
    inks = image.convert("CMYK")
    flipped = bytearray(base)
    flipped[scan + 200] ^= 0x55
    many = slow[:-2] + slow[slow.rindex(b"\xff\xda") :] * 30
    return {
        **size, **cuts, **ends,
        "cut, with an end": base[: scan + 60] + b"\xff\xd9",
        "trailing bytes": base + b"anything" * 99,
        "another behind it": base + base,
        "two scans": base[:-2] + base[scan:],
        "a scan of one component": base.replace(b"\xff\xda\0\x0c\x03", b"\xff\xda\0\x0c\x01"),
        "many scans": many,
        "a bit changed": bytes(flipped),
        "inks": jpeg(inks), "inks of Adobe": with_segment(jpeg(inks), 0xEE, b"Adobe\0d\0\0\0\0\2"),
        "Adobe RGB": with_segment(base, 0xEE, b"Adobe\0d\0\0\0\0\0"),
        "short JFIF": with_segment(base, 0xE0, b"JFIF"),
        "short Adobe": with_segment(base, 0xEE, b"Adobe"),
        "short Photoshop": with_segment(base, 0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        "short profile": with_segment(base, 0xE2, b"ICC_PROFILE\0"),
        "broken MPF": with_segment(base, 0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0"),
        "broken EXIF": with_segment(base, 0xE1, b"Exif\0\0MM\0*" * 9),
        "several frames": base[:frame] + base[frame : frame + 19] + base[frame:],
        "12 bits": base[: frame + 4] + b"\x0c" + base[frame + 5 :],
        "odd sampling": base[: frame + 11] + b"\x31" + base[frame + 12 :],
        "a PNG": b"\x89PNG\r\n\x1a\n" + base,
    }  # fmt: skip


ODD = odd_jpegs()


@pytest.mark.parametrize("data", ODD.values(), ids=ODD)
def test_an_odd_jpeg_has_the_verdict_and_the_pixels_of_pillow(data):
    assert outcome(data, FAST) == outcome(data, EXACT)
    assert outcome(data, EXACT) == outcome(data, EXACT, decoding=1)


def test_only_what_is_whole_and_bounded_is_left_to_simplejpeg():
    left = {name for name, data in ODD.items() if opens(data) and by_simplejpeg(data) is not None}
    assert left == {
        "trailing bytes", "another behind it", "Adobe RGB", "a bit changed",
    }  # fmt: skip
    assert outcome(ODD["inks"], FAST) == outcome(ODD["inks of Adobe"], FAST)


def opens(data: bytes) -> bool:
    try:
        open_picture(data, 20)
    except Undecodable:
        return False
    return True


@st.composite
def mutated(draw) -> bytes:
    """A small JPEG, cut, with bytes changed, doubled or put in; most keep their header."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    options = draw(st.sampled_from([*PLAIN.values()]))
    data = bytearray(jpeg(noise(24, 16, 3), **options))
    for _ in range(draw(st.integers(0, 4))):
        at = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] = chance.choice([0, 0xFF, 0xD9, 0xDA, chance.randrange(256)])
        elif kind == 1:
            data[at:at] = data[at : at + chance.randrange(1, 30)]
        elif kind == 2:
            del data[at : at + chance.randrange(1, 30)]
        elif at > 20:
            del data[at:]
    return bytes(data) or b"\xff"


@settings(max_examples=400, deadline=None)
@given(mutated())
@example(jpeg(noise(24, 16, 3))[:-2] + b"\xff\xfe\x10\4ab\xff\xd9")  # Pillow is content with it
def test_of_mutated_bytes_both_ways_make_the_same(data):
    assert outcome(data, FAST) == outcome(data, EXACT)


# --- orientation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_that_of_pillow_and_resized_like_it(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(noise(160, 100), exif=exif)
    picture = decode(data, FAST, None)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(picture.pixels, upright)
    np.testing.assert_array_equal(picture.image, upright)
    for size in ((48, 48), (70, 43), (30, 90), upright.size):
        made = resize(picture.pixels, size, Image.Resampling.BICUBIC)
        wanted = np.asarray(upright.resize(size, Image.Resampling.BICUBIC), int)
        assert made.shape == wanted.shape
        assert np.abs(made - wanted).mean() <= 0.05


# --- resizing -------------------------------------------------------------------------------------

SIDES = st.integers(1, 150)
FILTERS = st.sampled_from([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])


@settings(deadline=None)
@given(width=SIDES, height=SIDES, across=SIDES, down=SIDES, by=FILTERS, hard=st.booleans())
@example(width=99, height=48, across=143, down=26, by=3, hard=True)  # columns first
@example(width=100, height=140, across=60, down=60, by=3, hard=True)  # rows first, by a hair
@example(width=100, height=141, across=60, down=60, by=3, hard=True)
def test_a_resize_is_that_of_pillow_but_for_rounding(width, height, across, down, by, hard):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    if hard:  # steps that overshoot the range between the two passes
        pixels = (pixels > 127) * np.uint8(255)
    wanted = np.asarray(Image.fromarray(pixels).resize((across, down), by))
    apart = np.abs(resize(pixels, (across, down), by).astype(int) - wanted)
    assert apart.max() <= 2 and apart.mean() <= (0.05 if across * down > 400 and not hard else 0.5)
    with by_pillow():
        np.testing.assert_array_equal(resize(pixels, (across, down), by), wanted)


def test_any_view_and_any_filter_is_resized_and_nothing_is_warned_of():
    pixels = np.asarray(noise(90, 70))  # read only, as Pillow gives it
    views = [pixels, pixels[::-1], pixels[:, ::-1], pixels.swapaxes(0, 1), pixels[5:40, 9:80]]
    views += [np.rot90(pixels, turns) for turns in (1, 2, 3)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view in views:
            for by in Image.Resampling:
                wanted = Image.fromarray(view).resize((33, 21), by)
                apart = np.abs(resize(view, (33, 21), by).astype(int) - np.asarray(wanted))
                assert apart.mean() <= 0.05
        np.testing.assert_array_equal(resize(noise(5, 4), (5, 4), 3), noise(5, 4))


THREADS = """
import os, threading
import numpy as np, torch
from chiasm.pipeline.resizing import resize
torch.set_num_threads(4)
big = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
def work():
    before = len(os.listdir("/proc/self/task"))
    for view in (big, big.swapaxes(0, 1)[::-1], big[:, :300]):
        resize(view, (299, 224), 3), resize(view, (600, 100), 3)
    print(len(os.listdir("/proc/self/task")) - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_resizing_in_a_thread_starts_no_team_of_threads():
    ran = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout.strip()) == (0, "0"), ran.stderr


def test_exact_decoding_gives_a_model_the_pixels_of_pillow_to_the_bit():
    image = noise(210, 170)
    data = jpeg(image)
    place = Source(data, Place("m", 0, len(data)))
    encoder = load_encoder("pocket", EncoderSettings(precision="float32", device="cpu"))
    side = encoder.modalities["image"].side
    with Image.open(io.BytesIO(data)) as opened:
        small = opened.resize((round(210 * side / 170), side), Image.Resampling.BICUBIC)
    left = (small.width - side) // 2
    wanted = np.asarray(small.crop((left, 0, left + side, side))).transpose(2, 0, 1)

    def seen(chosen: DecodeSettings, decoding: int = 2) -> np.ndarray:
        decoder = SampleDecoder(encoder, chosen, Stopwatch(), decoding)
        return decoder(Sample("k", {"image": place}, (), None)).inputs["image"]

    np.testing.assert_array_equal(seen(EXACT), wanted)
    np.testing.assert_array_equal(seen(FAST, decoding=1), wanted)
    assert 0 < np.abs(seen(FAST) - wanted.astype(int)).mean() <= 0.05
    np.testing.assert_array_equal(seen(EXACT), wanted)  # of the first nothing is left


def test_a_crop_larger_than_the_picture_is_black_around_it():
    crop = SquareProcessing(9, 4, 3, Scale(1.0, (0.0,) * 3, (1.0,) * 3))
    image = noise(6, 4)
    image_of_pillow = image.crop(((6 - 9) // 2, (4 - 9) // 2, (6 - 9) // 2 + 9, (4 - 9) // 2 + 9))
    made = crop.preprocess(np.asarray(image))
    np.testing.assert_array_equal(made, np.asarray(image_of_pillow).transpose(2, 0, 1))


# --- colour profiles ------------------------------------------------------------------------------


def converted(image: Image.Image, profile: bytes) -> np.ndarray:
    """By the library alone."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    srgb = ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, source, srgb, outputMode="RGB"))


def saved(image: Image.Image, form: str, profile: bytes) -> bytes:
    out = io.BytesIO()
    image.save(out, form, icc_profile=profile, **({"lossless": True} if form == "WEBP" else {}))
    return out.getvalue()


@pytest.mark.parametrize("chosen", [FAST, EXACT], ids=["fast", "exact"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_colours_of_a_wide_gamut_become_srgb(form, chosen):
    data = saved(noise(50, 30), form, WIDE)
    with Image.open(io.BytesIO(data)) as image:
        wanted = converted(image, WIDE)
        assert np.abs(wanted - np.asarray(image, int)).mean() > 3
    np.testing.assert_array_equal(decode(data, chosen, None).pixels, wanted)
    plain = saved(noise(50, 30), form, SRGB)  # what was stored before has its own numbers
    assert outcome(data, chosen, decoding=1) == outcome(plain, chosen, decoding=1)


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_inks_and_greys_become_srgb_by_their_own_profiles(form):
    for mode, profile in (("CMYK", CMYK), ("L", GREY)):
        data = saved(noise(50, 30).convert(mode), form, profile)
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == mode
            wanted = converted(image, profile)
            assert np.abs(wanted - np.asarray(image.convert("RGB"), int)).mean() > 1
        np.testing.assert_array_equal(decode(data, FAST, None).pixels, wanted)


def test_a_grey_picture_with_a_profile_of_colours_and_a_transparent_one():
    grey = saved(noise(50, 30).convert("L"), "PNG", WIDE)
    wanted = converted(noise(50, 30).convert("L").convert("RGB"), WIDE)
    np.testing.assert_array_equal(decode(grey, FAST, None).pixels, wanted)
    clear = noise(50, 30).convert("RGBA")
    clear.putalpha(noise(50, 30, 1).getchannel(0))
    on_white = Image.new("RGB", clear.size, "white")
    on_white.paste(clear, mask=clear)
    made = decode(saved(clear, "PNG", WIDE), FAST, None).pixels
    np.testing.assert_array_equal(made, converted(on_white, WIDE))


IGNORED = {
    "cut": WIDE[:200],
    "no profile": b"x" * 500,
    "empty": b"\0" * 132,
    "a table of a thousand tags": WIDE[:128] + struct.pack(">L", 1000) + WIDE[132:] * 30,
    "tags beyond the end": edited(WIDE, {148: struct.pack(">LL", 1 << 30, 1 << 30)}),
    "pipelines of floats": edited(WIDE, {132: b"D2B0"}),
    "a link of devices": edited(WIDE, {12: b"link"}),
    "a profile of inks": CMYK,
    "a profile of greys": GREY,
    "too large": WIDE + bytes(colour.MOST_BYTES),
}


@pytest.mark.parametrize("profile", IGNORED.values(), ids=IGNORED)
def test_a_profile_that_cannot_be_used_is_ignored(profile):
    plain, image = saved(noise(50, 30), "TIFF", SRGB), noise(50, 30)
    assert colour.to_srgb(image, profile) is None
    assert outcome(saved(image, "TIFF", profile), FAST) == outcome(plain, FAST)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WIDE) - 1), st.integers(0, 255)), max_size=6))
def test_a_profile_of_any_bytes_costs_no_picture(changes):
    profile = edited(WIDE, {at: bytes([value]) for at, value in changes})
    made = colour.to_srgb(noise(6, 4), profile)
    assert made is None or (made.mode, made.size) == ("RGB", (6, 4))


def test_srgb_is_left_alone_and_few_transforms_are_kept():
    assert colour.to_srgb(noise(6, 4), SRGB) is None
    assert colour.to_srgb(noise(6, 4), None) is None
    for number in range(40):
        colour.to_srgb(noise(6, 4), edited(WIDE, {84: struct.pack(">L", number)}))
    assert colour._transform.cache_info().currsize <= 16


# --- vectors of before ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A shard of pictures of wide gamut, so that the two ways of decoding differ beyond rounding,
    and the collection of today's way."""
    root = tmp_path_factory.mktemp("wide")
    samples = [
        {"__key__": f"{n}", "jpg": jpeg(noise(90, 70, n), icc_profile=WIDE), "txt": "noise"}
        for n in range(6)
    ]
    write_shard(root / "a.tar", samples)
    made = make_collection(root / "a.tar", root / "c", "pocket")
    assert made.rows == 6
    return root / "c"


def test_rows_of_older_decoding_are_encoded_again_the_older_way(photographs, tmp_path):
    path = tmp_path / "c"
    shutil.copytree(photographs, path)
    assert check(str(path), reencode=6).ok
    folder = Folder(str(path))
    (file,), (entry,) = embeddings(folder), entries(folder)
    scaled = EmbedSettings(decode=DecodeSettings(scaled=True))
    older = edition_of(entry.source, file.footer.fingerprint, scaled, rules=entry.rules)
    parquet, ledger = path / f"embeddings/{file.shard_id}.parquet", path / f"ledger/{file.shard_id}"
    parquet.write_bytes(parquet.read_bytes().replace(entry.edition.encode(), older.encode()))
    fields = json.loads(ledger.with_suffix(".json").read_text()) | {"edition": older}
    del fields["decoding"]
    ledger.with_suffix(".json").write_text(json.dumps(fields))
    shutil.rmtree(path / "summaries", ignore_errors=True)
    # The rows are today's: the older way, which knew no profiles, finds that they are not its own.
    found = [str(each) for each in check(str(path), reencode=6).findings]
    assert sum("image vector has cosine" in each for each in found) == 6


def test_what_a_training_depends_on_is_stored_as_it_was():
    assert set(FAST.as_stored()) == {"max_megapixels", "max_member_bytes", "max_seconds", "scaled"}
    assert EXACT.as_stored() == {**FAST.as_stored(), "exact": True}


def test_a_query_is_prepared_as_its_command_says(photographs, tmp_path, chiasm):
    build_index(str(photographs))
    query = tmp_path / "query.jpg"
    query.write_bytes(jpeg(noise(90, 70, 3), icc_profile=WIDE))
    scores = []
    for chosen in ((), ("--set", "decode.exact=true"), ("--set", "decode.exact=false")):
        ran = chiasm("search", photographs, "--image", query, "--json", *chosen)
        assert ran.returncode == 0, ran.stderr
        best = json.loads(ran.stdout.splitlines()[0])
        scores.append(best.get("score") or best["results"][0]["score"])
    assert scores[0] == scores[2] != scores[1]
    assert scores == pytest.approx([1, 1, 1], abs=1e-3)
