"""A two-tower model on disk: what was learned, and the names of the towers it was learned on.

model.safetensors holds what was learned, solved and counted, float16 but for EXACT; config.json its
shapes and the towers: names and fingerprints, for the towers themselves stay where they are.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from chiasm.pipeline.errors import EncoderError
from chiasm.pipeline.model.checkpoint import CONFIG, WEIGHTS, write_whole
from chiasm.pipeline.two_tower.network import TwoTowerConfig, TwoTowerNetwork

FILES = (WEIGHTS, CONFIG)
# Counted up, too, where a constant changes that saved weights rely on: those of `expansion.py`,
# `hubs.py`, SURE and BANDS of `network.py`, MARGIN, SQUARE and WORDS of `frozen.py`.
FORMAT = "chiasm two-tower model 6"
EXACT = ("evidence", "usual", "word_ids", "expansion.rarity")  # small, or whole numbers


def save_two_tower(folder: Path, network: TwoTowerNetwork) -> None:
    """Write a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        name: (tensor if name in EXACT else tensor.half()).detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    told = {"format": FORMAT, **network.config.to_json()}
    write_whole(folder / WEIGHTS, save(kept, metadata={"format": "pt"}))
    write_whole(folder / CONFIG, (json.dumps(told, indent=2) + "\n").encode())


def load_two_tower(folder: Path) -> TwoTowerNetwork:
    """The network of a model folder, float32 on the CPU, in evaluation mode.

    Raises EncoderError: no such folder, a file missing, or files that are not what they should be.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise EncoderError(
            f"model folder {folder}",
            expected=", ".join(FILES),
            found="no " + ", no ".join(missing),
            do="name a folder written by chiasm train --preset two-tower",
        )
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = told.pop("format", None)
        if kind != FORMAT:
            raise _other_format(folder, kind)
        network = TwoTowerNetwork(TwoTowerConfig.from_json(told))
        weights = {
            name: tensor if name in EXACT else tensor.to(torch.float32)
            for name, tensor in load_file(folder / WEIGHTS).items()
        }
        network.load_state_dict(weights)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"model folder {folder}",
            expected="weights and config of one two-tower model",
            found=f"{type(error).__name__}: {error}"[:300],
            do="copy the folder again",
        ) from error
    return network.eval()


def _other_format(folder: Path, found: object) -> EncoderError:
    return EncoderError(
        f"model folder {folder}",
        expected=FORMAT,
        found=str(found),
        do="train again: chiasm train --preset two-tower, into another folder",
    )
