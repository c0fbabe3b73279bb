"""Pixels of common JPEGs by simplejpeg, which is twice as fast as Pillow's codec.

Both are libjpeg-turbo with the same accurate DCT and the same smooth upsampling, so that pixels are
the same. Pillow hands out bytes in small pieces and repacks each row; simplejpeg decodes from
memory into an array. Pillow opens every file first that has more than tables in its header, and
what simplejpeg refuses, or only warns of, is decoded by Pillow: which files are rows is for Pillow
alone to say.
"""

from __future__ import annotations

import contextlib

import numpy as np
import simplejpeg
from PIL.JpegImagePlugin import JpegImageFile

from chiasm.pipeline.images.headers import is_bounded_jpeg

_MODES = ("RGB", "L")  # CMYK needs the inversion of inks that Pillow makes


def decode_jpeg(data: bytes, width: int, height: int, *, scaled: bool = False) -> np.ndarray | None:
    """The pixels of a JPEG, uint8 (height, width, 3), None where Pillow has to decode it. scaled:
    the size is smaller than that of the file.

    One call that nothing can stop: only for pictures whose work is known from their pixels."""
    least = (height, width) if scaled else (0, 0)
    with contextlib.suppress(Exception):  # whatever it was, Pillow gives the verdict
        pixels = simplejpeg.decode_jpeg(data, min_height=least[0], min_width=least[1])
        if pixels.shape == (height, width, 3):
            return pixels
    return None


def decode_opened(image: JpegImageFile, data: bytes) -> np.ndarray | None:
    """The same of a JPEG that Pillow has opened, in the size that `image` has by now."""
    if image.mode not in _MODES or not is_bounded_jpeg(data):
        return None
    return decode_jpeg(data, *image.size, scaled=bool(image.decoderconfig))
