"""Models that answer about pictures, in transformers' own form, with random weights: a few
thousand, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from chiasm.pipeline.pretrained.hub import capture_warnings

SIDE, PATCH = 32, 16
END = 2  # the token at the end of an answer, of every model here
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WORDS = (
    *("what", "colour", "is", "the", "boat", "how", "many", "a", "red", "blue", "two", "three"),
    *("sea", "moon", "where", "question", "answer", "yes", "no", "on", "in", ":", "?", "##s"),
)
LABELS = ("yes", "no", "red", "two boats")
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@capture_warnings()
def blip_folder(folder: Path, network: str = "BlipForConditionalGeneration") -> Path:
    """A BLIP that captions, or with `BlipForQuestionAnswering` one that answers questions."""
    tokenizer = _bert_tokenizer()
    config = transformers.BlipConfig(
        text_config={
            **TOWER,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": TOWER["hidden_size"],
            "projection_dim": 16,
            "max_position_embeddings": 24,
            "bos_token_id": 3,
            "eos_token_id": END,
            "pad_token_id": 0,
            "sep_token_id": END,
        },
        vision_config={
            **TOWER,
            "image_size": SIDE,
            "patch_size": PATCH,
            "initializer_range": 0.02,  # its own is 1e-10: no picture would matter
        },
        projection_dim=16,
    )
    return _save(folder, network, config, transformers.BlipProcessor(_pixels("Blip"), tokenizer))


@capture_warnings()
def vilt_folder(folder: Path) -> Path:
    """A ViLT that chooses among LABELS."""
    tokenizer = _bert_tokenizer()
    config = transformers.ViltConfig(
        **TOWER,
        vocab_size=len(tokenizer),
        image_size=SIDE,
        patch_size=8,
        max_position_embeddings=24,
        max_image_length=-1,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    pixels = transformers.ViltImageProcessorPil(size={"shortest_edge": SIDE})
    processor = transformers.ViltProcessor(pixels, tokenizer)
    return _save(folder, "ViltForQuestionAnswering", config, processor)


@capture_warnings()
def blip2_folder(folder: Path) -> Path:
    """A BLIP-2 over an OPT: a prompt continued."""
    tokenizer = _byte_tokenizer()
    processor = transformers.Blip2Processor(_pixels("Blip"), tokenizer, num_query_tokens=4)
    config = transformers.Blip2Config(
        vision_config={
            **TOWER,
            "image_size": SIDE,
            "patch_size": PATCH,
            "initializer_range": 0.02,  # its own is 1e-10: no picture would matter
        },
        qformer_config={**TOWER, "encoder_hidden_size": TOWER["hidden_size"]},
        text_config={
            "model_type": "opt",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": END,
            "pad_token_id": 0,
        },
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return _save(folder, "Blip2ForConditionalGeneration", config, processor)


@capture_warnings()
def llava_folder(folder: Path, template: str | None = CHAT) -> Path:
    """A LLaVA, whose pictures all become as many tokens."""
    tokenizer = _byte_tokenizer()
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **TOWER),
        text_config=_llama_config(tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return _save(folder, "LlavaForConditionalGeneration", config, processor)


@capture_warnings()
def idefics_folder(folder: Path) -> Path:
    """An Idefics3, the form of SmolVLM: pictures are cut into tiles, more of a larger one."""
    extra = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    extra += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _byte_tokenizer(extra)
    config = transformers.Idefics3Config(
        vision_config={**TOWER, "image_size": SIDE, "patch_size": 8},
        text_config=_llama_config(tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    pixels = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
    )
    processor = transformers.Idefics3Processor(
        pixels, tokenizer, image_seq_len=4, chat_template=CHAT
    )
    return _save(folder, "Idefics3ForConditionalGeneration", config, processor)


def _llama_config(tokenizer: Any) -> Any:
    return transformers.LlamaConfig(
        **TOWER,
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )


def _pixels(kind: str) -> Any:
    return getattr(transformers, f"{kind}ImageProcessorPil")(size={"height": SIDE, "width": SIDE})


def _save(folder: Path, network: str, config: Any, processor: Any) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, network)(config)
    with torch.no_grad():  # initial weights are so small that every token is as probable as another
        for name, weight in model.named_parameters():
            if weight.ndim in (2, 4):  # those of three dimensions are positions
                weight.mul_(8)
            elif name.endswith("predictions.bias"):
                weight[END] += 2  # some answers end early
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _bert_tokenizer() -> Any:
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[SEP]", "[DEC]", "[CLS]", "[MASK]", *WORDS]
    pieces += [f"##{letter}" for letter in letters] + [*letters]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return transformers.BertTokenizer(vocab=vocab, bos_token="[DEC]", model_max_length=24)


def _byte_tokenizer(extra: Sequence[str] = ()) -> Any:
    """One token a byte, and those that a chat needs."""
    special = ["<image>", *extra]
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *special]
    pieces += sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special,
        model_max_length=512,
    )
