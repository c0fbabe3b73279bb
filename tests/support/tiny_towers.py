"""Two towers with random weights and a world they can tell apart: pictures of two colours."""

from __future__ import annotations

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer

from chiasm.pipeline.pretrained.hub import capture_warnings

COLOURS = {
    "red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 220), "yellow": (230, 220, 30),
    "white": (245, 245, 245), "black": (15, 15, 15), "pink": (250, 120, 190),
    "brown": (120, 70, 20),
}  # fmt: skip
PHRASES = ("{} and {}", "a picture of {} beside {}", "{} left , {} right")
SIDE = 32


@capture_warnings()
def image_folder(folder: Path) -> Path:
    """A residual network of 32-pixel pictures."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24], depths=[1, 1], layer_type="basic"
    )
    transformers.ResNetModel(config).eval().save_pretrained(folder)
    processor = transformers.ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(folder)
    return folder


def _words() -> list[str]:
    words = sorted({word for phrase in PHRASES for word in phrase.split()} - {"{}"})
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *COLOURS]


@capture_warnings()
def static_text_folder(folder: Path) -> Path:
    """A vector for every word, averaged: it tells nothing of single words."""
    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(_words())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32)], device="cpu")
    made.save_pretrained(str(folder), create_model_card=False)
    return folder


@capture_warnings()
def text_folder(folder: Path) -> Path:
    """A BERT of one block that knows the words of this world, as a SentenceTransformer."""
    torch.manual_seed(0)
    vocabulary = _words()
    bert = folder / "bert"
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    transformers.BertTokenizer(vocab={w: i for i, w in enumerate(vocabulary)}).save_pretrained(bert)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).eval().save_pretrained(bert)
    saved = folder / "sentences"
    made = SentenceTransformer(modules=[Transformer(str(bert)), Pooling(32, "mean")], device="cpu")
    made.save_pretrained(str(saved), create_model_card=False)
    return saved


def picture(left: str, right: str, rng: random.Random) -> Image.Image:
    """Two colours side by side, under some noise."""
    pixels = np.zeros((SIDE, SIDE, 3))
    pixels[:, : SIDE // 2], pixels[:, SIDE // 2 :] = COLOURS[left], COLOURS[right]
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, 12, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def make_pairs(
    path: Path, samples: int, seed: int, captions: int = len(PHRASES), wrong: float = 0.0
) -> list[str]:
    """A shard of them; -> the keys whose captions are another picture's, a share `wrong`."""
    rng = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    untrue = []
    with tarfile.open(path, "w") as tar:
        for number in range(samples):
            key = f"{seed:03d}{number:05d}"
            left, right = rng.sample(list(COLOURS), 2)
            png = io.BytesIO()
            picture(left, right, rng).save(png, "PNG")
            if rng.random() < wrong:
                untrue.append(key)
                others = [colour for colour in COLOURS if colour not in (left, right)]
                left, right = rng.sample(others, 2)
            texts = [phrase.format(left, right) for phrase in PHRASES[:captions]]
            for extension, data in (
                ("png", png.getvalue()),
                ("json", json.dumps({"captions": texts, "number": number}).encode()),
            ):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return untrue
