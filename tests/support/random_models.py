"""Model folders in the real formats, with random weights and tokenizers made by code.

For measuring and testing the path from a picture or a text to its vector where no weights can be
fetched. Every file is what transformers itself writes: configuration, safetensors, tokenizer, image
processor. Sizes default to those of CLIP and SigLIP base; tests ask for tiny ones. What such a
model says of a picture means nothing; that two ways of asking it agree does.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from chiasm.pipeline.pretrained.hub import capture_warnings

# fmt: off
WORDS = (
    "a", "the", "of", "in", "on", "and", "red", "blue", "green", "yellow", "big", "small",
    "boat", "house", "tree", "star", "moon", "cat", "dog", "man", "woman", "photo", "picture",
    "sea", "sky", "under", "over", "behind", "two", "three", "standing", "sitting", "black",
    "white", "street", "people",
)
# fmt: on


@capture_warnings()
def clip_folder(
    folder: Path,
    *,
    seed: int = 0,
    side: int = 224,
    short: int | None = None,
    tower: dict[str, int] | None = None,
    vision: dict[str, int] | None = None,
    width: int = 512,
) -> Path:
    """A CLIP: byte-level BPE tokenizer, pictures cut to `side` from a short side of `short`."""
    tokenizer = _clip_tokenizer()
    config = transformers.CLIPConfig(
        text_config={**_vocabulary(tokenizer), **(tower or {})},
        vision_config={"image_size": side, **(tower or {}), **(vision or {})},
        projection_dim=width,
    )
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": short or side}, crop_size={"height": side, "width": side}
    )
    return _save(folder, transformers.CLIPModel, config, seed, tokenizer, processor)


@capture_warnings()
def siglip_folder(
    folder: Path,
    *,
    seed: int = 0,
    side: int = 224,
    tower: dict[str, int] | None = None,
    vision: dict[str, int] | None = None,
    gemma: bool = False,
) -> Path:
    """A SigLIP: pictures squeezed to `side`; with `gemma` its tokenizer is that of SigLIP2, which a
    SigLIP2 of fixed resolution carries under the model type siglip."""
    tokenizer = _gemma_tokenizer("GemmaTokenizer") if gemma else siglip_tokenizer()
    config = transformers.SiglipConfig(
        text_config={**_vocabulary(tokenizer), **(tower or {})},
        vision_config={"image_size": side, **(tower or {}), **(vision or {})},
    )
    processor = transformers.SiglipImageProcessorPil(size={"height": side, "width": side})
    return _save(folder, transformers.SiglipModel, config, seed, tokenizer, processor)


@capture_warnings()
def naflex_folder(
    folder: Path,
    *,
    seed: int = 0,
    patch: int = 16,
    patches: int = 256,
    tower: dict[str, int] | None = None,
) -> Path:
    """A SigLIP2 of free resolution (NaFlex): pictures of at most `patches` patches."""
    tokenizer = _gemma_tokenizer("Siglip2Tokenizer")
    config = transformers.Siglip2Config(
        text_config={**_vocabulary(tokenizer), **(tower or {})},
        vision_config={"patch_size": patch, "num_patches": patches, **(tower or {})},
    )
    processor = transformers.Siglip2ImageProcessorPil(patch_size=patch, max_num_patches=patches)
    return _save(folder, transformers.Siglip2Model, config, seed, tokenizer, processor)


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id or tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save(
    folder: Path,
    model: Any,
    config: Any,
    seed: int,
    tokenizer: Any,
    processor: Any,
) -> Path:
    torch.manual_seed(seed)
    model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _clip_tokenizer() -> Any:
    """Bytes and the whole words of WORDS, as CLIP's: lowercased, `</w>` at the end of a word."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: Any = []  # pairs, though the annotation of CLIPTokenizer says strings
    for word in WORDS:
        while len(parts := _merged(word, merges)) > 1:
            merges.append((parts[0], parts[1]))
            pieces.append(parts[0] + parts[1])
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=merges,
        model_max_length=77,
    )


def _merged(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The pieces that byte-pair encoding leaves of a word: the earliest merge goes first."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while True:
        pairs = enumerate(itertools.pairwise(pieces))
        found = [(merges.index(pair), at) for at, pair in pairs if pair in merges]
        if not found:
            return pieces
        _, at = min(found)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def siglip_tokenizer() -> Any:
    """A unigram tokenizer as SigLIP's: lowercased, `</s>` at the end and as padding, no mask."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -4.0)]
    pieces += [(letter, -6.0) for letter in letters]
    pieces += [(f"▁{word}", -3.0) for word in WORDS if len(word) > 1]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=64,
        model_input_names=["input_ids"],
    )


def _gemma_tokenizer(kind: str) -> Any:
    """A BPE of single letters in both cases as Gemma's: `<eos>` at the end, padded on the right."""
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789▁"
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{b:02X}>" for b in range(256))]
    tokenizer = getattr(transformers, kind)(
        vocab={piece: number for number, piece in enumerate([*pieces, *letters])},
        merges=[],
        model_input_names=["input_ids"],
        padding_side="right",
    )
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    return tokenizer


@capture_warnings()
def clap_folder(folder: Path, *, seed: int = 0, fused: bool = False, seconds: int = 1) -> Path:
    """A CLAP: sounds of `seconds` at 16 kHz, longer ones cut, or fused where `fused`; RoBERTa's
    tokens of bytes. Its two towers are tiny."""
    tokenizer = _roberta_tokenizer()
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ClapConfig(
        text_config={
            **_vocabulary(tokenizer),
            **tower,
            "intermediate_size": 64,
            "max_position_embeddings": 40,
        },
        audio_config={
            "num_mel_bins": 64,
            "spec_size": 64,
            "window_size": 4,
            "patch_size": 4,
            "patch_stride": [4, 4],
            "hidden_size": 32,
            "patch_embeds_hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "enable_fusion": fused,
            "fusion_type": "aff_2d" if fused else None,
            "aff_block_r": 4,
        },
        projection_dim=24,
    )
    extractor = transformers.ClapFeatureExtractor(
        sampling_rate=16_000,
        hop_length=320,
        max_length_s=seconds,
        fft_window_size=512,
        frequency_min=50,
        frequency_max=8_000,
        truncation="fusion" if fused else "rand_trunc",
    )
    return _save(folder, transformers.ClapModel, config, seed, tokenizer, extractor)


def _roberta_tokenizer() -> Any:
    """Bytes, the special tokens numbered as RoBERTa's, of at most 37 tokens."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return transformers.RobertaTokenizer(
        vocab={piece: number for number, piece in enumerate([*pieces, "<mask>"])},
        merges=[],
        model_max_length=37,
    )
