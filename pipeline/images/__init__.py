"""Bytes of a picture -> RGB pixels, within limits; each failure has a reason."""

from chiasm.pipeline.images.decode import DecodeSettings, Picture, decode
from chiasm.pipeline.images.failures import REASONS

__all__ = ["REASONS", "DecodeSettings", "Picture", "decode"]
