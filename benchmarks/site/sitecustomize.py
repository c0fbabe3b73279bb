"""First thing in every process that benchmarks start: the encoder family `free`."""

from benchmarks import free_encoder
from chiasm.pipeline.encoders import register_encoder

register_encoder("free", free_encoder.load)
