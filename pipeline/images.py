"""The bytes of an encoded picture in; an upright RGB picture out, or `Undecodable` with a reason.

What a person sees is what the encoder gets: turned upright, the first frame of many, transparency
on white, 16 bits scaled to 8. Limits are checked on the header, before any pixel is made. Only the
formats below are tried, whatever the name says, so that no other plugin of Pillow meets foreign
bytes. Large JPEGs are decoded at 1/2, 1/4 or 1/8 where that leaves twice the side which the encoder
needs: on mosaics of photographs this changed the resized picture by 0.6 to 1.1 levels of 255 on
average, while Lanczos instead of bicubic changed it by 1.4 to 1.7. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.errors import require_at_least

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "AVIF")

REASONS = {  # stage "decode": every reason there is, and what it says
    "not_a_picture": "its bytes begin like no format that is read",
    "truncated": "its bytes end before the picture does",
    "corrupt": "a decoder refused its bytes",
    "unsupported": "a variant of its format that the decoder does not know",
    "too_many_pixels": "more pixels than decode.max_megapixels",
    "too_thin": "so long and thin that resizing it would take more pixels than that",
    "member_too_large": "more bytes than decode.max_member_bytes",
    "out_of_memory": "no memory for its pixels",
}

_SILENCE = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as warnings.filters has it

# Where an encoder takes any size: the processors of such models refuse longer pictures than 200:1.
_MAX_ASPECT = 200

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

    max_megapixels: width x height in millions; above 178 Pillow's own limit holds. scaled: decode
    large JPEGs at a fraction of their size where that is faithful; False is full decoding.
    """

    max_megapixels: float = 100
    max_member_bytes: int = 64 << 20
    scaled: bool = True

    def __post_init__(self) -> None:
        require_at_least(0, decode__max_megapixels=self.max_megapixels)
        require_at_least(1, decode__max_member_bytes=self.max_member_bytes)


@dataclass(frozen=True, slots=True)
class Picture:
    """`image`: RGB, upright. `width`, `height`: of the whole picture, even if decoded smaller."""

    image: Image.Image
    width: int
    height: int


class Undecodable(Exception):
    """A picture that cannot be used. `reason`: a key of REASONS; `detail`: the decoder's words."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def decode(data: bytes, settings: DecodeSettings, target: int | None) -> Picture:
    """Decode one picture; thread safe. `target`: the side in pixels of what the encoder sees, None
    for its full size. Raises Undecodable, and nothing else, for whatever `data` may be."""
    if len(data) > settings.max_member_bytes:
        raise Undecodable("member_too_large", f"{len(data)} bytes")
    _silence_pillow()
    try:
        return _decode(data, settings, target)
    except Undecodable:
        raise
    except Exception as error:
        # Decoders raise nearly everything for bad bytes: OSError, SyntaxError, struct.error, ...
        raise Undecodable(*_reason_of(error, data)) from error


def _decode(data: bytes, settings: DecodeSettings, target: int | None) -> Picture:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        _check_size(width, height, settings, target)
        if settings.scaled and target is not None and isinstance(image, JpegImageFile):
            image.draft(None, (2 * target, 2 * target))
        whole = image.size == (width, height)
        image.load()
        if whole:
            width, height = image.size  # loading turns a TIFF and may correct an ICO
            _check_size(width, height, settings, target)
        orientation = _orientation(image)
        rgb = _to_rgb(image)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    if orientation >= 5:
        width, height = height, width
    return Picture(rgb, width, height)


def _check_size(width: int, height: int, settings: DecodeSettings, target: int | None) -> None:
    if width < 1 or height < 1:
        raise Undecodable("corrupt", f"{width} x {height} pixels")
    limit = settings.max_megapixels * 1e6
    if width * height > limit:
        raise Undecodable("too_many_pixels", f"{width} x {height}")
    aspect = max(width, height) / min(width, height)
    if aspect > (_MAX_ASPECT if target is None else limit / target**2):
        raise Undecodable("too_thin", f"{width} x {height}")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001  broken EXIF says nothing about the pixels
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow -> RGB, with transparency on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bits(image).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # it is None only when converting in place
        return converted
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":  # Pillow converts premultiplied grey only to plain grey
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits, integers or floats, to 8 bits.

    16 bits have their full range, as their format says. What wider numbers mean no format says:
    taken is the narrowest of 0-1 (floats), 0-255 and 0-65535 that holds them, else their span."""
    values = np.asarray(image).astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0:
        ranges = ((1.0,) if image.mode == "F" else ()) + (255.0, 65535.0, high)
        low, high = 0.0, next(top for top in ranges if high <= top)
    scaled = (values - low) * np.float32(255 / ((high - low) or 1))
    scaled = np.nan_to_num(scaled, nan=0, posinf=255, neginf=0).clip(0, 255)
    return Image.fromarray(scaled.round().astype(np.uint8))


def _reason_of(error: Exception, data: bytes) -> tuple[str, str]:
    text = str(error).lower()
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, UnidentifiedImageError):
        detail = f"no decoder takes what begins with {data[:8].hex(' ')}" if data else "no bytes"
    if isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels", detail
    if isinstance(error, MemoryError):
        return "out_of_memory", detail
    if isinstance(error, UnidentifiedImageError) and not _begins_like_a_picture(data):
        return "not_a_picture", detail
    if isinstance(error, EOFError) or "truncated" in text or _is_cut(data):
        return "truncated", detail
    if isinstance(error, NotImplementedError) or re.search(
        "unsupported|not supported|unknown", text
    ):
        return "unsupported", detail
    return "corrupt", detail


def _begins_like_a_picture(data: bytes) -> bool:
    starts = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return (
        data.startswith((*starts, b"\0\0\1\0"))
        or data[4:12] in (b"ftypavif", b"ftypavis")
        or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
    )


def _is_cut(data: bytes) -> bool:
    """Whether the container itself says that bytes are missing at the end."""
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in data[-1024:]  # cameras pad behind the end mark
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-1024:]
    if data.startswith(b"GIF8"):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"BM"):
        return len(data) < int.from_bytes(data[2:6], "little")
    return False


def _silence_pillow() -> None:
    """Keep Pillow's warnings about odd files from the terminal: the picture, or the reason of its
    loss, says it better. `warnings.catch_warnings` is no choice in threads, where each exit would
    undo what another thread set; so one filter for Pillow's modules is added, once, and stays."""
    if _SILENCE not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
