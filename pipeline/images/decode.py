"""Encoded picture -> upright RGB picture, or `Undecodable` with a reason.

The encoder gets what a viewer shows: turned upright, the first frame of many, transparency on
white, 16 bits scaled to 8, colours of an embedded profile as sRGB. Limits are checked on the
header, before any pixel is decoded. Verdicts are Pillow's; pixels of common JPEGs are decoded by
simplejpeg.

With `scaled`, large JPEGs are decoded at 1/2, 1/4 or 1/8 scale where that leaves twice the side
that the encoder needs: on mosaics of photographs this changed the resized picture by 0.6 to 1.1
levels of 255 on average, while Lanczos instead of bicubic changed it by 1.4 to 1.7.

Whatever the bytes, one picture takes at most BYTES_PER_PIXEL bytes a pixel plus BYTES_OVERHEAD, and
`max_seconds` of CPU time or, inside one call of a C library, the time for its pixels. Large
pictures are decoded one at a time in a process, so that threads do not multiply their memory.
"""

from __future__ import annotations

import re
import threading
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from chiasm.pipeline.errors import Undecodable, require_at_least
from chiasm.pipeline.images.bounded_file import BoundedFile
from chiasm.pipeline.images.colour import to_srgb
from chiasm.pipeline.images.failures import REASONS, classify_failure
from chiasm.pipeline.images.formats import SLOW, open_picture
from chiasm.pipeline.images.headers import bare_jpeg_size, sizes_in_icns, sizes_in_ico
from chiasm.pipeline.images.jpeg import decode_jpeg, decode_opened
from chiasm.pipeline.images.rgb import is_grey, to_rgb
from chiasm.pipeline.resizing import is_by_pillow

__all__ = [
    "DECODING",
    "MAX_ASPECT",
    "MAX_ASPECT_ANY_SIZE",
    "REASONS",
    "DecodeSettings",
    "Picture",
    "Undecodable",
    "decode",
]

# The version of the way from bytes to pixels of a model: decoder, resize, colour profiles.
# 1: Pillow decodes and resizes, and profiles are not applied. 2: as here and in resizing.py.
DECODING = 2

# The worst case of decode's memory; benchmarks/hostile.py measures both.
BYTES_PER_PIXEL = 32
BYTES_OVERHEAD = 512 << 20

_SILENCE = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # an entry of warnings.filters

# Maximal ratio of the sides; of a longer picture only the middle is used. Encoders with a square
# crop see no more of it; others see a strip that they can resize. For encoders of any size the
# ratio is that of the models' own processors, which refuse longer pictures.
MAX_ASPECT, MAX_ASPECT_ANY_SIZE = 16, 200

_LARGE = 16_000_000  # pixels
_one_large = threading.Lock()

# Bytes that a codec gets at once where 64 KB can contain hours of work: thousands of scans of a
# JPEG over all its pixels; thousands of comments of a plain PPM.
_JPEG_READ_BYTES, _PPM_READ_BYTES = 1 << 10, 1 << 17

_UPRIGHT = range(2, 9)  # EXIF orientations that are not upright already


@dataclass(frozen=True)
class DecodeSettings:
    """Limits and speed of decoding.

    max_megapixels: width x height in millions; above 178 Pillow's own limit applies. max_seconds:
    CPU time for one picture, 0 for no limit. scaled: decode large JPEGs at a fraction of their
    size where the result is close. exact: decode and resize by Pillow alone, at a third of the
    speed, for vectors of Pillow's pixels to the bit.
    """

    max_megapixels: float = 100
    max_member_bytes: int = 64 << 20
    max_seconds: float = 20
    scaled: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        require_at_least(
            0, decode__max_megapixels=self.max_megapixels, decode__max_seconds=self.max_seconds
        )
        require_at_least(1, decode__max_member_bytes=self.max_member_bytes)

    def as_stored(self) -> dict[str, Any]:
        """The fields, without `exact` where it is off, as they were before there was one: what a
        training depends on has to be what it was."""
        fields = asdict(self)
        return fields if self.exact else {k: v for k, v in fields.items() if k != "exact"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture. pixels: RGB uint8 (H, W, 3), upright; of a very long picture its middle;
    where it was turned or cut, a view of what was decoded. width, height: of the whole upright
    picture in pixels, even if it was decoded smaller."""

    pixels: np.ndarray
    width: int
    height: int

    @property
    def image(self) -> Image.Image:
        """The same as a copy for Pillow, mode RGB."""
        return Image.fromarray(self.pixels)


def decode(
    data: bytes, settings: DecodeSettings, target: int | None, decoding: int = DECODING
) -> Picture:
    """Decode one picture; thread safe. target: the shorter side in pixels that the encoder needs,
    None for the full size. decoding: an earlier version of DECODING, for vectors that it has made.
    Raises Undecodable, and nothing else, for any `data`."""
    if len(data) > settings.max_member_bytes:
        raise Undecodable("member_too_large", f"{len(data)} bytes")
    fast = decoding > 1 and not settings.exact and not is_by_pillow()
    if fast and not settings.scaled and (size := bare_jpeg_size(data)):
        if (picture := _decode_bare(data, *size, settings, target)) is not None:
            return picture
        fast = False  # Pillow gives the verdict
    _silence_pillow()
    try:
        with _one_large if _is_large_icon(data, settings) else nullcontext():
            image, file = open_picture(data, settings.max_seconds)
    except Exception as error:
        raise classify_failure(error, data, "header", ran_out=False) from error
    with image:
        form = image.format or ""
        try:
            return _decode(image, file, data, settings, target, fast=fast, profiles=decoding > 1)
        except Exception as error:
            # Decoders raise nearly everything for bad bytes: OSError, SyntaxError, KeyError, ...
            raise classify_failure(error, data, form, file.ran_out, image) from error


def _decode_bare(
    data: bytes, width: int, height: int, settings: DecodeSettings, target: int | None
) -> Picture | None:
    """A JPEG of that size with nothing but tables in its header, without Pillow, which takes 0.1
    ms to open it; None where Pillow has to decode or to refuse it."""
    most = min(settings.max_megapixels * 1e6, 2 * (Image.MAX_IMAGE_PIXELS or 0))
    if not 0 < width * height <= most:
        return None
    with _one_large if width * height > _LARGE else nullcontext():
        pixels = decode_jpeg(data, width, height)
    if pixels is None:
        return None
    return Picture(_crop_to_aspect(pixels, _max_aspect(target)), width, height)


def _is_large_icon(data: bytes, settings: DecodeSettings) -> bool:
    """Whether this is an ICO, which Pillow decodes on opening, with a large picture inside.
    Undecodable for one above the limit."""
    large = [size for size in sizes_in_ico(data) if size[0] * size[1] > _LARGE]
    for width, height in large:
        _check_size(width, height, settings)
    return bool(large)


def _decode(
    image: ImageFile,
    file: BoundedFile,
    data: bytes,
    settings: DecodeSettings,
    target: int | None,
    *,
    fast: bool,
    profiles: bool,
) -> Picture:
    """fast: by simplejpeg, where it can. profiles: whether a colour profile is applied."""
    width, height = image.size
    _check_size(width, height, settings, image.format)
    for inside in sizes_in_icns(image, data):
        _check_size(*inside, settings, image.format)
    if settings.scaled and target is not None and isinstance(image, JpegImageFile):
        image.draft(None, (2 * target, 2 * target))
    full_size = image.size == (width, height)
    with _one_large if _pixels_in_memory(image, width * height) > _LARGE else nullcontext():
        pixels = None
        if fast and isinstance(image, JpegImageFile):
            pixels = decode_opened(image, data)
        if pixels is None:
            _load(image, file)
        if full_size:
            width, height = image.size  # loading turns a TIFF and may correct an ICO
            _check_size(width, height, settings, image.format)
        orientation = _orientation(image)
        pixels = _srgb_pixels(image, pixels, profiles=profiles)
    pixels = _crop_to_aspect(pixels, _max_aspect(target))
    if orientation >= 5:
        width, height = height, width
    return Picture(_upright(pixels, orientation), width, height)


def _srgb_pixels(image: Image.Image, pixels: np.ndarray | None, *, profiles: bool) -> np.ndarray:
    """uint8 (H, W, 3) of a loaded picture, or of one whose `pixels` are decoded already. profiles:
    whether an embedded colour profile is applied."""
    profile = image.info.get("icc_profile") if profiles else None
    if profile is not None:
        converted = None
        if image.mode == "CMYK":
            converted = to_srgb(image, profile)
        elif image.mode != "LAB":
            rgb = to_rgb(image) if pixels is None else Image.fromarray(pixels)
            converted = to_srgb(rgb, profile)
            if converted is None and is_grey(image):
                converted = to_srgb(rgb.getchannel(0), profile)
        if converted is not None:
            return np.array(converted)
    return np.array(to_rgb(image)) if pixels is None else pixels


def _check_size(width: int, height: int, settings: DecodeSettings, form: str | None = None) -> None:
    if width < 1 or height < 1:
        raise Undecodable("corrupt", f"{width} x {height} pixels")
    limit = SLOW.get(form, settings.max_megapixels) if form else settings.max_megapixels
    if width * height > min(limit, settings.max_megapixels) * 1e6:
        raise Undecodable("too_many_pixels", f"{width} x {height}")


def _pixels_in_memory(image: Image.Image, pixels: int) -> int:
    """How many pixels are in memory at once: all of `pixels`, fewer in a JPEG decoded scaled."""
    if isinstance(image, JpegImageFile) and not image.info.get("progressive"):
        return image.width * image.height
    return pixels


def _load(image: ImageFile, file: BoundedFile) -> None:
    if isinstance(image, JpegImageFile) and not image.tile:
        raise EOFError("no scan") if file.ran_out else ValueError("no scan")
    if file.unbounded:
        image.load()
        return
    max_bytes = None
    if isinstance(image, JpegImageFile):
        image.decodermaxblock = _JPEG_READ_BYTES
    elif image.format == "PPM":
        max_bytes = _PPM_READ_BYTES
    # A PNG may have metadata after its pixels, each chunk of which is kept; other formats have not.
    file.start_pixels(max_bytes=max_bytes, unlimited_reads=image.format != "PNG")
    image.load()


def _max_aspect(target: int | None) -> int:
    return MAX_ASPECT_ANY_SIZE if target is None else MAX_ASPECT


def _crop_to_aspect(pixels: np.ndarray, max_aspect: int) -> np.ndarray:
    """The middle of a picture longer than `max_aspect` times its short side, else all of it."""
    height, width = pixels.shape[:2]
    max_side = max_aspect * min(width, height)
    if max(width, height) <= max_side:
        return pixels
    across, down = min(width, max_side), min(height, max_side)
    left, top = (width - across) // 2, (height - down) // 2
    return pixels[top : top + down, left : left + across]


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A view of the pixels, upright, by their EXIF orientation."""
    if orientation >= 5:  # rows are columns
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  broken EXIF says nothing about the pixels
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _silence_pillow() -> None:
    """Keep Pillow's warnings about odd files off the terminal; failures have reasons anyway.

    `warnings.catch_warnings` does not work in threads, where leaving it undoes what another thread
    has set; so one filter for Pillow's modules is added, once, and stays."""
    if _SILENCE not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
