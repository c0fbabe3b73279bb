"""What is trained: the network, from nothing, from a model folder or on top of a frozen encoder,
and the stages that it goes through."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from chiasm.pipeline.encoders import JOINT, Encoder, language_of
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model.checkpoint import load_model
from chiasm.pipeline.model.config import DecoderConfig, FusionConfig, ModelConfig, keeps_words
from chiasm.pipeline.model.frozen_joint import FrozenJointConfig, FrozenJointNetwork
from chiasm.pipeline.model.joint import JointNetwork
from chiasm.pipeline.model.tasks import PREFIXES
from chiasm.pipeline.model.tokenizer import Tokenizer
from chiasm.pipeline.model.tokenizer import train as learn_tokenizer
from chiasm.pipeline.records import IMAGE, TEXT
from chiasm.pipeline.training.joint.data import Samples
from chiasm.pipeline.training.joint.objective import (
    Stage,
    fusion_losses,
    task_losses,
    tower_losses,
)
from chiasm.pipeline.training.joint.settings import JointSettings

CORPUS = 100_000  # captions that a tokenizer is learned from, at most: it takes them into memory
# Of modalities of one token each, and of thousands of pairs, which are few.
FROZEN_FUSION = FusionConfig(fusion="cross_attention", width=128, depth=1, heads=2)
FUSION = ("fusion.", "matching.")


def require_image_and_text(encoder: Encoder) -> None:
    """UsageError for an encoder without vectors of pictures and texts in one space."""
    columns = (IMAGE, TEXT, JOINT)
    dims = {encoder.dims.get(name) for name in columns}
    if None in dims or len(dims) > 1:
        found = ", ".join(f"{name} of {dim}" for name, dim in encoder.dims.items())
        raise UsageError(
            f"--towers {encoder.name}",
            expected="an encoder with vectors of pictures and texts in one space",
            found=f"one with vectors {found}",
        )


def frozen_network(encoder: Encoder, name: str, settings: JointSettings) -> FrozenJointNetwork:
    """Fusion and matching of an encoder's vectors; name: what loads it from anywhere."""
    torch.manual_seed(settings.seed)
    fusion = settings.fusion or FROZEN_FUSION
    config = FrozenJointConfig(name, encoder.fingerprint, encoder.dims[IMAGE], fusion)
    return FrozenJointNetwork(config)


def start_of(folder: Path | None) -> tuple[JointNetwork, Tokenizer] | None:
    """The model that towers begin as."""
    return None if folder is None else load_model(folder)


def tokenizer_of(samples: Samples, rows: np.ndarray, vocabulary: int) -> Tokenizer:
    """A tokenizer learned from the texts of these samples; of more than it takes, from some of all
    shards."""
    drawn = np.random.default_rng(0).permutation(rows)
    texts = (text for row in drawn for text in (*samples.texts(row), *_task_texts(samples, row)))
    return learn_tokenizer(islice(texts, CORPUS), vocabulary)


def _task_texts(samples: Samples, row: int) -> list[str]:
    return [text for e in samples.examples(row) for text in (e.source, e.target)]


def own_config(
    settings: JointSettings, start: ModelConfig | None, tokens: int, prefixes: tuple[str, ...]
) -> ModelConfig:
    """The shapes of a network with towers of its own. tokens: of the tokenizer; start: of the model
    that it begins as, whose fusion is kept where it is of today's form and no other is wanted, and
    whose decoder is kept for what it goes on to learn alone, since what it reads changes; prefixes:
    what the decoder learns, none for no decoder."""
    config = start or settings.model
    fusion = settings.fusion or config.fusion
    if fusion is None or not fusion.bounded_residual:
        fusion = FusionConfig()
    decoder = config.decoder or settings.model.decoder or DecoderConfig()
    decoder = replace(decoder, reads_fused=decoder.reads_fused and keeps_words(fusion))
    return replace(
        config,
        text=replace(config.text, vocabulary=tokens),
        fusion=fusion,
        decoder=replace(decoder, prefixes=prefixes) if prefixes else None,
        image_tokens=None,
    )


def prefixes_of(samples: Samples, rows: np.ndarray) -> tuple[str, ...]:
    """The tasks and languages that these samples have something to learn of; captions first."""
    learned = {
        *(f"caption:{language_of(text)}" for row in rows for text in samples.texts(row)),
        *(f"{e.task}:{e.language}" for row in rows for e in samples.examples(row)),
    }
    return tuple(prefix for prefix in PREFIXES if prefix in learned)


def own_network(
    config: ModelConfig, start: JointNetwork | None, settings: JointSettings
) -> JointNetwork:
    """A network with towers of its own, with the weights of `start` wherever its parts are the
    same."""
    torch.manual_seed(settings.seed)
    network = JointNetwork(config)
    if start is not None:
        same = {"fusion.": start.config.fusion == config.fusion}
        same["matching."] = same["fusion."]
        old, new = start.config.decoder, config.decoder
        same["decoder."] = bool(old and new and old.reads_fused == new.reads_fused)
        if new and new.reads_fused:  # of another fusion it would read what it has not learned
            same["decoder."] &= same["fusion."]
        anew = tuple(prefix for prefix, is_same in same.items() if not is_same)
        there, given = network.state_dict(), start.state_dict()
        kept = {k: v for k, v in given.items() if k in there and not k.startswith(anew)}
        if same["decoder."]:
            _keep_ids(network, start, there, kept)
        network.load_state_dict({**there, **kept})
    return network


def _keep_ids(
    network: JointNetwork, start: JointNetwork, there: dict[str, Tensor], kept: dict[str, Tensor]
) -> None:
    """Put into `kept` the decoder's embedding: rows of `start` by what they are of, text tokens and
    prefixes; new prefixes have those that are there."""
    assert network.decoder is not None
    assert start.decoder is not None
    ids, old, name = network.decoder.ids, start.decoder.ids, "decoder.embedding.weight"
    rows = there[name].clone()
    rows[: ids.text] = kept[name][: old.text]
    for number, prefix in enumerate(ids.prefixes):
        if prefix in old.prefixes:
            rows[ids.text + number] = kept[name][old.text + tuple(old.prefixes).index(prefix)]
    kept[name] = rows


def frozen_stages(settings: JointSettings) -> list[Stage]:
    """Fusion and matching alone."""
    trained = (*FUSION, "log_scale", "match_scale")
    return [Stage("fusion", settings.frozen_steps, settings.frozen_batch, trained, fusion_losses)]


def own_stages(settings: JointSettings, decoder_steps: int) -> list[Stage]:
    """Towers, then fusion and matching on top of them as they are, then the decoder."""
    towers = ("image.", "text.", "image_projection.", "text_projection.", "log_scale")
    stages = [
        Stage("towers", settings.steps, settings.batch, towers, tower_losses),
        Stage("fusion", settings.fusion_steps, settings.batch, FUSION, fusion_losses),
        Stage("decoder", decoder_steps, settings.decoder_batch, ("decoder.",), task_losses),
    ]
    return [stage for stage in stages if stage.steps]
