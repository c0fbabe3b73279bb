"""The bytes of an encoded picture in; an upright RGB picture out, or `Undecodable` with a reason.

What a person sees is what the encoder gets: turned upright, the first frame of many, transparency
on white, 16 bits scaled to 8. Limits are checked on the header, before any pixel is made. Large
JPEGs are decoded at 1/2, 1/4 or 1/8 where that leaves twice the side which the encoder needs: on
mosaics of photographs this changed the resized picture by 0.6 to 1.1 levels of 255 on average,
while Lanczos instead of bicubic changed it by 1.4 to 1.7. Colour profiles are not applied.

Whatever the bytes, one picture takes at most BYTES_A_PIXEL bytes a pixel and BYTES_BESIDES, and
`max_seconds` of computing or, inside one call of a C library, what its pixels take. Large ones are
decoded one at a time in a process, so that its threads do not multiply the first.
"""

from __future__ import annotations

import re
import threading
import warnings
from contextlib import nullcontext
from dataclasses import dataclass

from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from chiasm.pipeline.errors import Undecodable, require_at_least
from chiasm.pipeline.images.bounded_file import BoundedFile
from chiasm.pipeline.images.failures import REASONS, classify_failure
from chiasm.pipeline.images.formats import SLOW, open_picture
from chiasm.pipeline.images.headers import sizes_in_icns, sizes_in_ico
from chiasm.pipeline.images.rgb import to_rgb

__all__ = [
    "LONGEST",
    "LONGEST_WHOLE",
    "REASONS",
    "DecodeSettings",
    "Picture",
    "Undecodable",
    "decode",
]

# Of decode's own memory at its worst; benchmarks/hostile.py measures both.
BYTES_A_PIXEL = 32
BYTES_BESIDES = 512 << 20

_SILENCE = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as warnings.filters has it

# Of what is longer only the middle is looked at. Encoders that take a square crop see no more of
# it; others see a strip that they can resize. Where an encoder takes any size the bound is wider,
# and that of the models' own processors, which refuse longer pictures.
LONGEST, LONGEST_WHOLE = 16, 200

_LARGE = 16_000_000  # pixels
_one_large = threading.Lock()

# How much a codec is fed at once where 64 KB can hold hours of work: thousands of scans of a
# JPEG over all its pixels; thousands of comments of a plain PPM.
_PIECE_OF_JPEG, _PIECE_OF_PPM = 1 << 10, 1 << 17

_UPRIGHT = {  # EXIF orientation -> what turns the picture as a person sees it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class DecodeSettings:
    """Limits and speed of decoding.

    max_megapixels: width x height in millions; above 178 Pillow's own limit holds. max_seconds: of
    computing, for one picture; 0: no limit. scaled: decode large JPEGs at a fraction of their size
    where that is faithful; False is full decoding.
    """

    max_megapixels: float = 100
    max_member_bytes: int = 64 << 20
    max_seconds: float = 20
    scaled: bool = True

    def __post_init__(self) -> None:
        require_at_least(
            0, decode__max_megapixels=self.max_megapixels, decode__max_seconds=self.max_seconds
        )
        require_at_least(1, decode__max_member_bytes=self.max_member_bytes)


@dataclass(frozen=True, slots=True)
class Picture:
    """`image`: RGB, upright, of a very long picture its middle. `width`, `height`: of the whole
    picture, even if decoded smaller."""

    image: Image.Image
    width: int
    height: int


def decode(data: bytes, settings: DecodeSettings, target: int | None) -> Picture:
    """Decode one picture; thread safe. `target`: the side in pixels of what the encoder sees, None
    for its full size. Raises Undecodable, and nothing else, for whatever `data` may be."""
    if len(data) > settings.max_member_bytes:
        raise Undecodable("member_too_large", f"{len(data)} bytes")
    _silence_pillow()
    try:
        with _one_large if _is_large_icon(data, settings) else nullcontext():
            image, file = open_picture(data, settings.max_seconds)
    except Exception as error:
        raise classify_failure(error, data, "header", ran_out=False) from error
    with image:
        form = image.format or ""
        try:
            return _decode(image, file, data, settings, target)
        except Exception as error:
            # Decoders raise nearly everything for bad bytes: OSError, SyntaxError, KeyError, ...
            raise classify_failure(error, data, form, file.ran_out, image) from error


def _is_large_icon(data: bytes, settings: DecodeSettings) -> bool:
    """Whether this is an ICO, decoded on opening, with a large picture inside, within the limit."""
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
) -> Picture:
    width, height = image.size
    _check_size(width, height, settings, image.format)
    for inside in sizes_in_icns(image, data):
        _check_size(*inside, settings, image.format)
    if settings.scaled and target is not None and isinstance(image, JpegImageFile):
        image.draft(None, (2 * target, 2 * target))
    whole = image.size == (width, height)
    with _one_large if _weight(image, width * height) > _LARGE else nullcontext():
        _load(image, file)
        if whole:
            width, height = image.size  # loading turns a TIFF and may correct an ICO
            _check_size(width, height, settings, image.format)
        orientation = _orientation(image)
        rgb = _middle(to_rgb(image), LONGEST_WHOLE if target is None else LONGEST)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    if orientation >= 5:
        width, height = height, width
    return Picture(rgb, width, height)


def _check_size(width: int, height: int, settings: DecodeSettings, form: str | None = None) -> None:
    if width < 1 or height < 1:
        raise Undecodable("corrupt", f"{width} x {height} pixels")
    most = SLOW.get(form, settings.max_megapixels) if form else settings.max_megapixels
    if width * height > min(most, settings.max_megapixels) * 1e6:
        raise Undecodable("too_many_pixels", f"{width} x {height}")


def _weight(image: Image.Image, pixels: int) -> int:
    """How many pixels stand in memory at once: all of `pixels`, fewer in a JPEG decoded scaled."""
    if isinstance(image, JpegImageFile) and not image.info.get("progressive"):
        return image.width * image.height
    return pixels


def _load(image: ImageFile, file: BoundedFile) -> None:
    if isinstance(image, JpegImageFile) and not image.tile:
        raise EOFError("no scan") if file.ran_out else ValueError("no scan")
    if file.unbounded:
        image.load()
        return
    piece = None
    if isinstance(image, JpegImageFile):
        image.decodermaxblock = _PIECE_OF_JPEG
    elif image.format == "PPM":
        piece = _PIECE_OF_PPM
    # A PNG's chunks are read, and kept, until its end; of others the pixels are all that is left.
    file.go_on_to_pixels(most_bytes=piece, by_bytes=image.format != "PNG")
    image.load()


def _middle(image: Image.Image, longest: int) -> Image.Image:
    """The middle of a picture longer than `longest` times its short side, else all of it."""
    bound = longest * min(image.size)
    if max(image.size) <= bound:
        return image
    width, height = min(image.width, bound), min(image.height, bound)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  broken EXIF says nothing about the pixels
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _silence_pillow() -> None:
    """Keep Pillow's warnings about odd files from the terminal: the picture, or the reason of its
    loss, says it better. `warnings.catch_warnings` is no choice in threads, where each exit would
    undo what another thread set; so one filter for Pillow's modules is added, once, and stays."""
    if _SILENCE not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
