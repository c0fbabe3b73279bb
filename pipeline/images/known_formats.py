"""What bytes are that no decoder here takes: the name of their format, and what to do about it.

By signatures alone, and only of bytes that were refused: nothing here decides what is read.
"""

from __future__ import annotations

from chiasm.pipeline.errors import Undecodable

CONVERT = "convert it to JPEG or PNG"

# Signatures of pictures without a decoder: (offset, bytes, name).
_PICTURES = (
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPB", "PSB"),
    (0, b"8BPS", "PSD"),
    (0, b"gimp xcf", "XCF"),
    (0, b"FLIF", "FLIF"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (8, b"CR\x02\0", "camera raw (Canon CR2)"),
    (0, b"FUJIFILMCCD-RAW", "camera raw (Fuji RAF)"),
    (0, b"IIRO", "camera raw (Olympus ORF)"),
    (0, b"IIRS", "camera raw (Olympus ORF)"),
    (0, b"MMOR", "camera raw (Olympus ORF)"),
    (0, b"IIU\0", "camera raw (Panasonic RW2)"),
    (0, b"FOVb", "camera raw (Sigma X3F)"),
    (0, b"\0MRM", "camera raw (Minolta MRW)"),
    (128, b"DICM", "DICOM"),
)
# Signatures of what is no picture.
_OTHERS = (
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\x1a\x45\xdf\xa3", "video (Matroska or WebM)"),
    (0, b"\0\0\x01\xba", "video (MPEG)"),
    (0, b"\0\0\x01\xb3", "video (MPEG)"),
    (0, b"FLV\x01", "video (Flash)"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "video or sound (Windows Media)"),
    (8, b"AVI ", "video (AVI)"),
    (8, b"WAVE", "sound (WAV)"),
    (0, b"OggS", "sound or video (Ogg)"),
    (0, b"fLaC", "sound (FLAC)"),
    (0, b"ID3", "sound (MP3)"),
    (0, b"\x1f\x8b\x08", "archive (gzip)"),
    (0, b"PK\x03\x04", "archive (zip)"),
    (0, b"Rar!", "archive (RAR)"),
    (0, b"7z\xbc\xaf\x27\x1c", "archive (7z)"),
    (0, b"\x28\xb5\x2f\xfd", "archive (zstd)"),
    (0, b"\x7fELF", "program"),
    (257, b"ustar", "archive (tar)"),
    (0, b"version https://git-lfs", "Git LFS pointer; fetch the file itself by git lfs pull"),
)
# Brands of the container that films and pictures share (ISO/IEC 14496-12), by what they mean.
_HEIC = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
_AVIF = {b"avif", b"avis"}
_HEIF = {b"mif1", b"msf1"}
_MAX_BRANDS = 64
_DNG_VERSION, _MAKE, _SUB_DIRECTORIES = 50706, 271, 330  # tags of a TIFF
_TEXT_BYTES = 1024  # in which the first tag of a page or a drawing stands


def is_heif(data: bytes, *, hevc: bool = False) -> bool:
    """Whether this is a HEIF container and no AVIF; hevc: with a brand of HEVC pictures,
    as phones write them."""
    brands = _brands(data)
    return bool(brands & (_HEIC if hevc else _HEIC | _HEIF)) and not brands & _AVIF


def unknown_format(data: bytes) -> Undecodable | None:
    """The reason for bytes of a format that is known by name and has no decoder here; None for any
    other bytes."""
    for offset, signature, name in _PICTURES:
        if data.startswith(signature, offset):
            return Undecodable("unsupported", f"{name}: {CONVERT}")
    for offset, signature, name in _OTHERS:
        if data.startswith(signature, offset):
            return Undecodable("not_a_picture", name)
    return _of_container(data) or _of_text(data)


def camera_raw(data: bytes, tags: set[int]) -> Undecodable | None:
    """The reason for a TIFF, with these tags, that is a camera's raw file; None for another."""
    if tags >= {_DNG_VERSION} or tags >= {_MAKE, _SUB_DIRECTORIES}:
        kind = "DNG" if _DNG_VERSION in tags else "TIFF"
        return unknown_format(data) or Undecodable("unsupported", f"camera raw ({kind}): {CONVERT}")
    return unknown_format(data)


def _of_container(data: bytes) -> Undecodable | None:
    brands = _brands(data)
    if not brands:
        return None
    if brands & _AVIF:
        return Undecodable("unsupported", f"AVIF: {CONVERT}, or install a Pillow that has AVIF")
    if brands & (_HEIC | _HEIF):
        return Undecodable("unsupported", f"HEIC: {CONVERT}, or install pillow-heif")
    if b"crx " in brands:
        return Undecodable("unsupported", f"camera raw (Canon CR3): {CONVERT}")
    return Undecodable("not_a_picture", "video or sound (MP4 or MOV)")


def _brands(data: bytes) -> set[bytes]:
    """The brands of a file that begins with a box `ftyp`; none of another."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), len(data), 16 + 4 * _MAX_BRANDS)
    return {data[8:12]} | {data[at : at + 4] for at in range(16, end - 3, 4)}


def _of_text(data: bytes) -> Undecodable | None:
    head = data[:_TEXT_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head.startswith((b"<", b"{")):
        return None
    if b"<svg" in head:
        return Undecodable("not_a_picture", "SVG: draw it as PNG")
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Undecodable("not_a_picture", "a web page (HTML)")
    if head.startswith(b"<?xml"):
        return Undecodable("not_a_picture", "XML")
    return None
