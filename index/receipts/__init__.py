"""Receipts of searches: what was asked for and answered, kept so that it can be done again."""

from chiasm.index.receipts.record import Receipt, line_of, read_receipt
from chiasm.index.receipts.recorder import Recorder, answer_as_json, explained
from chiasm.index.receipts.replay import Replay, replay

__all__ = [
    "Receipt",
    "Recorder",
    "Replay",
    "answer_as_json",
    "explained",
    "line_of",
    "read_receipt",
    "replay",
]
