"""What pictures and films are that no decoder here takes: the name of their format, and what to do
about it.

By their extension, where a shard is read; by signatures, of bytes that were refused. Neither
decides what is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.pipeline.errors import Undecodable

_CONVERT = "convert it to JPEG or PNG"
_DRAW = "draw it as PNG"
_HEIF_TOO = f"{_CONVERT}, or install pillow-heif"


@dataclass(frozen=True, slots=True)
class _Format:
    """extensions: with blanks between. signatures: (offset, bytes). do: what to do about it, "" for
    what is no picture."""

    name: str
    extensions: str = ""
    signatures: tuple[tuple[int, bytes], ...] = ()
    do: str = _CONVERT

    def __str__(self) -> str:
        return f"{self.name}: {self.do}" if self.do else self.name


def _begins(*signatures: bytes, at: int = 0) -> tuple[tuple[int, bytes], ...]:
    return tuple((at, signature) for signature in signatures)


_PSB = _Format("PSB", "psb", _begins(b"8BPS\0\2"))
_HEIC = _Format("HEIC", "heics heifs", do=_HEIF_TOO)
_SVG = _Format("SVG", "svg svgz", do=_DRAW)
_PICTURES = (
    _Format("JPEG XL", "jxl", _begins(b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    _Format("JPEG XR", "jxr wdp hdp", _begins(b"II\xbc")),
    _Format("JPEG-LS", "jls"),
    _Format("JPEG 2000 of several layers (JPM)", "jpm"),
    _PSB,
    _Format("PSD", "", _begins(b"8BPS")),
    _Format("XCF", "xcf", _begins(b"gimp xcf")),
    _Format("FLIF", "flif", _begins(b"FLIF")),
    _Format("BPG", "bpg", _begins(b"BPG\xfb")),
    _Format("DjVu", "djvu djv", _begins(b"AT&TFORM")),
    _Format("OpenEXR", "exr", _begins(b"v/1\x01")),
    _Format("Radiance HDR", "hdr", _begins(b"#?RADIANCE")),
    _Format("farbfeld", "ff", _begins(b"farbfeld")),
    _Format("PAM", "pam", _begins(b"P7\n")),
    _Format("WBMP", "wbmp"),
    _Format("camera raw (Canon CR2)", "cr2", _begins(b"CR\x02\0", at=8)),
    _Format("camera raw (Canon CR3)", "cr3"),
    _Format("camera raw (Canon CRW)", "crw", _begins(b"HEAPCCDR", at=6)),
    _Format("camera raw (Fuji RAF)", "raf", _begins(b"FUJIFILMCCD-RAW")),
    _Format("camera raw (Olympus ORF)", "orf", _begins(b"IIRO", b"IIRS", b"MMOR")),
    _Format("camera raw (Panasonic RW2)", "rw2", _begins(b"IIU\0")),
    _Format("camera raw (Sigma X3F)", "x3f", _begins(b"FOVb")),
    _Format("camera raw (Minolta MRW)", "mrw", _begins(b"\0MRM")),
    _Format("camera raw (Nikon)", "nef nrw"),
    _Format("camera raw (Sony)", "arw sr2"),
    _Format("camera raw (Pentax)", "pef"),
    _Format("camera raw (Samsung)", "srw"),
    _Format("camera raw (DNG)", "dng"),
    _Format("camera raw", "raw"),
    _Format("DICOM", "dcm", _begins(b"DICM", at=128)),
    _HEIC,
)
_OTHERS = (
    _SVG,
    _Format("PDF", "", _begins(b"%PDF-"), ""),
    _Format("PostScript", "eps", _begins(b"%!PS", b"\xc5\xd0\xd3\xc6"), _DRAW),
    _Format("Windows metafile", "wmf emf", _begins(b"\xd7\xcd\xc6\x9a"), _DRAW),
    _Format("video (Matroska or WebM)", "mkv webm", _begins(b"\x1a\x45\xdf\xa3"), ""),
    _Format("video (MPEG)", "mpeg mpg", _begins(b"\0\0\x01\xba", b"\0\0\x01\xb3"), ""),
    _Format("video (Flash)", "flv", _begins(b"FLV\x01"), ""),
    _Format("video or sound (Windows Media)", "wmv", _begins(b"0&\xb2u\x8ef\xcf\x11"), ""),
    _Format("video (AVI)", "avi", _begins(b"AVI ", at=8), ""),
    _Format("video or sound (MP4 or MOV)", "m4v mov mp4", do=""),
    _Format("sound (WAV)", "", _begins(b"WAVE", at=8), ""),
    _Format("sound or video (Ogg)", "", _begins(b"OggS"), ""),
    _Format("sound (FLAC)", "", _begins(b"fLaC"), ""),
    _Format("sound (MP3)", "", _begins(b"ID3"), ""),
    _Format("archive (gzip)", "", _begins(b"\x1f\x8b\x08"), ""),
    _Format("archive (zip)", "", _begins(b"PK\x03\x04"), ""),
    _Format("archive (RAR)", "", _begins(b"Rar!"), ""),
    _Format("archive (7z)", "", _begins(b"7z\xbc\xaf\x27\x1c"), ""),
    _Format("archive (zstd)", "", _begins(b"\x28\xb5\x2f\xfd"), ""),
    _Format("program", "", _begins(b"\x7fELF"), ""),
    _Format("archive (tar)", "", _begins(b"ustar", at=257), ""),
    _Format("Git LFS pointer; fetch the file itself by git lfs pull", "",
            _begins(b"version https://git-lfs"), ""),
    _Format("no extension of one format", "image img", do="rename it to .jpg, .png or what it is"),
)  # fmt: skip

# Extensions of pictures and films that are not read -> what they are, and what to do.
UNREAD_EXTENSIONS = {
    extension: str(form) for form in (*_PICTURES, *_OTHERS) for extension in form.extensions.split()
}
# Brands of the container that films and pictures share (ISO/IEC 14496-12), by what they mean.
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}
_AVIF = {b"avif", b"avis"}
_HEIF_BRANDS = {b"mif1", b"msf1"}
_MAX_BRANDS = 64
_DNG_VERSION, _MAKE, _SUB_DIRECTORIES = 50706, 271, 330  # tags of a TIFF
_TEXT_BYTES = 1024  # in which the first tag of a page or a drawing stands


def is_heif(data: bytes, *, hevc: bool = False) -> bool:
    """Whether this is a HEIF container and no AVIF; hevc: with a brand of HEVC pictures,
    as phones write them."""
    brands = _brands(data)
    wanted = _HEIC_BRANDS if hevc else _HEIC_BRANDS | _HEIF_BRANDS
    return bool(brands & wanted) and not brands & _AVIF


def unknown_format(data: bytes) -> Undecodable | None:
    """The reason for bytes of a format that is known by name and has no decoder here; None for any
    other bytes."""
    for reason, forms in (("unsupported", _PICTURES), ("not_a_picture", _OTHERS)):
        for form in forms:
            if any(data.startswith(signature, offset) for offset, signature in form.signatures):
                return Undecodable(reason, str(form))
    return _of_container(data) or _of_text(data)


def camera_raw(data: bytes, tags: set[int]) -> Undecodable | None:
    """The reason for a TIFF, with these tags, that is a camera's raw file; None for another."""
    if tags >= {_DNG_VERSION} or tags >= {_MAKE, _SUB_DIRECTORIES}:
        kind = "DNG" if _DNG_VERSION in tags else "TIFF"
        named = Undecodable("unsupported", f"camera raw ({kind}): {_CONVERT}")
        return unknown_format(data) or named
    return unknown_format(data)


def large_photoshop(data: bytes) -> Undecodable | None:
    """The reason for Photoshop's format of large pictures, which begins like PSD; None else."""
    psb = any(data.startswith(signature) for _, signature in _PSB.signatures)
    return Undecodable("unsupported", str(_PSB)) if psb else None


def _of_container(data: bytes) -> Undecodable | None:
    brands = _brands(data)
    if not brands:
        return None
    if brands & _AVIF:
        return Undecodable("unsupported", f"AVIF: {_CONVERT}, or install a Pillow that has AVIF")
    if brands & (_HEIC_BRANDS | _HEIF_BRANDS):
        return Undecodable("unsupported", str(_HEIC))
    if b"crx " in brands:
        return Undecodable("unsupported", UNREAD_EXTENSIONS["cr3"])
    return Undecodable("not_a_picture", UNREAD_EXTENSIONS["mp4"])


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
        return Undecodable("not_a_picture", str(_SVG))
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return Undecodable("not_a_picture", "a web page (HTML)")
    if head.startswith(b"<?xml"):
        return Undecodable("not_a_picture", "XML")
    return None
