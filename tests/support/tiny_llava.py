"""A vision-language model of a few thousand weights, in transformers' own form, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import Tokenizer, models, pre_tokenizers

from chiasm.pipeline.pretrained.hub import capture_warnings

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}</s>"
)


READING = {  # by the processor, beside its tokenizer and pictures
    "patch_size": 16,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "chat_template": TEMPLATE,
}


def _saved(folder: Path, network: Any, config: Any, processor: Any) -> Path:
    torch.manual_seed(0)
    with capture_warnings():
        network(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def llava_folder(folder: Path, network: type[transformers.PreTrainedModel]) -> Path:
    """Random weights of a Llava (`LlavaModel` or `LlavaForConditionalGeneration`) that reads
    pictures and texts as chat messages, left-padded.
    """
    tokenizer = _letters(("<image>",), model_max_length=256)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=32, patch_size=16, **TOWER),
        text_config=transformers.LlamaConfig(
            vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=0, **TOWER
        ),
        image_token_index=4,
        vision_feature_layer=-1,
    )
    square = {"height": 32, "width": 32}
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size=square
        ),
        tokenizer=tokenizer,
        **READING,
    )
    return _saved(folder, network, config, processor)


def cross_encoder_folder(folder: Path) -> Path:
    """A CrossEncoder of such a model: log odds of one next token to another."""
    model = llava_folder(folder / "model", transformers.LlavaForConditionalGeneration)
    saved = folder / "reranker"
    with capture_warnings():
        modules = [Transformer(str(model), transformer_task="any-to-any"), LogitScore(60, 61)]
        network = CrossEncoder(modules=modules, device="cpu")
        network.save_pretrained(str(saved), create_model_card=False)
    return saved


def tiling_folder(folder: Path) -> Path:
    """Random weights of a LlavaNext: a picture is read whole, and in up to 3 x 3 tiles of 32
    pixels."""
    tokenizer = _letters(("<image>",), model_max_length=4096)
    grids = [[32, 32], [64, 64], [96, 96]]
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=32, patch_size=16, **TOWER),
        text_config=transformers.LlamaConfig(
            vocab_size=len(tokenizer), num_key_value_heads=2, pad_token_id=0, **TOWER
        ),
        image_token_index=4,
        vision_feature_layer=-1,
        image_grid_pinpoints=grids,
    )
    square = {"height": 32, "width": 32}
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 32}, crop_size=square, image_grid_pinpoints=grids
        ),
        tokenizer=tokenizer,
        **READING,
    )
    return _saved(folder, transformers.LlavaNextModel, config, processor)


def _letters(more: tuple[str, ...], model_max_length: int) -> transformers.PreTrainedTokenizerFast:
    """A token for each byte, left-padded; more: special tokens, from number 4 on."""
    letters = ["<pad>", "<s>", "</s>", "<unk>", *more, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(more),
        padding_side="left",
        model_max_length=model_max_length,
    )
