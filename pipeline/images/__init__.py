"""Encoded picture -> RGB pixels, within limits; every failure has a reason."""

from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.images.decode import DECODING, DecodeSettings, Picture, decode
from chiasm.pipeline.images.failures import REASONS

__all__ = ["DECODING", "REASONS", "DecodeSettings", "Picture", "Undecodable", "decode"]
