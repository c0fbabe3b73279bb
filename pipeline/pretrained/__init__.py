"""Other people's models: finding and loading them, and their image preprocessing."""

from __future__ import annotations

from dataclasses import dataclass

from chiasm.pipeline.errors import require_at_least

__all__ = ["EncoderSettings", "mend_model"]


def mend_model(message: str) -> str:
    """What a person can do about a model that failed with this message of its library."""
    if "padding token" in message:
        return 'name its padding token as "pad_token" in the model\'s tokenizer_config.json'
    return "check that all files are of one model and that its libraries fit it"


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder runs; which encoder it is depends on its name alone.

    precision: auto (bfloat16 where the device is fast in it, else float32), float32 or bfloat16.
    device: auto (cuda where the process has one, else cpu), cpu, cuda or cuda:N.
    threads: CPU threads of the forward pass; 0 for torch's default.
    """

    precision: str = "auto"
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        require_at_least(0, encoder__threads=self.threads)
