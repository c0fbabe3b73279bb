"""Which formats of Pillow are tried on untrusted bytes, and how a picture is opened.

Tried are all formats that decode in this process, from the bytes alone, under our limits; the name
does not matter, since files have wrong extensions. Not tried are

    EPS                          runs Ghostscript
    IPTC                         opens a file of any format inside it, EPS too
    BLP                          decodes a JPEG inside it where no deadline reaches
    WMF, BUFR, GRIB, HDF5, MPEG  only recognised: Pillow has no decoder for them here
    FPX, MIC                     need another package

HEIC, for which Pillow has no decoder, is opened by the package pillow-heif where it is installed.
The package's own class is used; nothing is registered with Pillow.

The order is Pillow's own, so that ambiguous bytes give the same format as elsewhere: formats with a
signature before those without, which accept too much (TGA above all).
"""

from __future__ import annotations

import contextlib
import functools

from PIL import Image
from PIL.ImageFile import ImageFile

from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.images.bounded_file import BoundedFile
from chiasm.pipeline.images.failures import classify_failure
from chiasm.pipeline.images.headers import check_pieces, is_plain_jpeg
from chiasm.pipeline.known_formats import is_heif, unknown_format

TRIED = """
    BMP DIB GIF JPEG PPM PNG AVIF CUR PCX DCX DDS FITS FLI FTEX GBR JPEG2000 ICNS ICO IM IMT MCIDAS
    TIFF MSP PCD PIXAR PSD QOI SGI SPIDER SUN TGA WEBP XBM XPM XVTHUMB
"""

# Maximal megapixels of formats whose decoder is one Python loop, which no deadline can stop.
SLOW = {"FITS": 16}


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats that are tried and that this build of Pillow has."""
    Image.init()
    return tuple(form for form in TRIED.split() if form in Image.OPEN)


def open_picture(data: bytes, seconds: float) -> tuple[ImageFile, BoundedFile]:
    """The picture with its header read, and the file of its pixels; raises Undecodable."""
    if is_plain_jpeg(data):
        with contextlib.suppress(Exception):  # on failure it is opened as any other
            file = BoundedFile(data, seconds, unbounded=True)
            return Image.open(file, formats=("JPEG",)), file  # pyrefly: ignore  # reads and seeks
    if is_heif(data, hevc=True):
        return _open_heif(data, seconds)
    check_pieces(data)
    file = BoundedFile(data, seconds)
    try:
        return Image.open(file, formats=formats()), file  # pyrefly: ignore  # reads and seeks
    except Exception as error:
        if is_heif(data):  # of an unknown kind, and no AVIF
            return _open_heif(data, seconds)
        raise _opening_failure(error, data, file) from error


def _open_heif(data: bytes, seconds: float) -> tuple[ImageFile, BoundedFile]:
    """A HEIF with its header read, by pillow-heif; raises Undecodable, also where it is not
    installed. libheif refuses pictures whose pixels are more than the header says."""
    try:
        import pillow_heif
    except ImportError:
        named = unknown_format(data)
        assert named is not None  # it has a brand of HEIF
        raise named from None
    file = BoundedFile(data, seconds)
    try:
        return pillow_heif.HeifImageFile(file), file
    except Exception as error:
        raise classify_failure(error, data, "HEIF", file.ran_out) from error


def _opening_failure(error: Exception, data: bytes, opened: BoundedFile) -> Undecodable:
    """Pillow hides the error of the format whose signature matched: open it with that format alone,
    in the time that is left."""
    if isinstance(error, Undecodable | MemoryError | Image.DecompressionBombError):
        return classify_failure(error, data, "header", ran_out=False)
    prefix = data[:16].ljust(16, b"\0")
    for form in formats():
        factory, accepts = Image.OPEN[form]
        if accepts is None or not accepts(prefix):
            continue
        file = opened.reopened()
        try:
            factory(file, "").close()  # pyrefly: ignore  # reads and seeks
        except Exception as decoder_error:  # noqa: BLE001  decoders raise nearly everything
            return classify_failure(decoder_error, data, form, file.ran_out)
    named = unknown_format(data)
    if named is not None:
        return named
    begins = f"no decoder takes what begins with {data[:8].hex(' ')}" if data else "no bytes"
    return Undecodable("not_a_picture", begins)
