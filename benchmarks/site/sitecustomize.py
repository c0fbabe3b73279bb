"""First thing in every process that benchmarks start: the encoder family `free`."""

from chiasm.pipeline.encoders import FAMILIES

FAMILIES["free"] = "benchmarks.free_encoder"
