"""Encoded picture -> RGB pixels, within limits; every failure has a reason."""

from chiasm.pipeline.errors import Undecodable
from chiasm.pipeline.images.decode import DecodeSettings, Picture, decode
from chiasm.pipeline.images.failures import REASONS

__all__ = ["REASONS", "DecodeSettings", "Picture", "Undecodable", "decode"]
