"""How a SentenceTransformer encodes queries, and how what is embedded: prompts, routes, lengths.

Its `encode_query` and `encode_document` put a prompt before each text (before pictures too, in
models that read chat messages) and tell the modules which of the two tasks it is: a Router then
takes other modules, a Transformer may cut texts at another length.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base import BaseModel
from sentence_transformers.base.modules import Router, Transformer
from torch import nn

from chiasm.pipeline.records import TEXT

QUERY, DOCUMENT = "query", "document"
# Of the model's prompts the one that `encode_query` and `encode_document` take: the first it has.
PROMPT_NAMES = {QUERY: ("query",), DOCUMENT: ("document", "passage", "corpus")}


def prompt_of(network: BaseModel, task: str, given: str | None) -> str:
    """The prompt of a task. given: a name of the model's prompts or a text, None for the model's
    own."""
    prompts = network.prompts
    if given is None:
        return next((prompts[name] for name in PROMPT_NAMES[task] if name in prompts), "") or ""
    return prompts.get(given, given) or ""


def default_prompt(network: SentenceTransformer) -> str:
    """The prompt of a plain `encode`."""
    return network.prompts.get(network.default_prompt_name or "", "") or ""


def reads_task(network: SentenceTransformer) -> bool:
    """Whether `encode_document` may give other vectors than a plain `encode` with its prompt."""
    return any(
        _routes_documents(module) if isinstance(module, Router) else _treats_documents(module)
        for module in network.modules()
    )


def _routes_documents(router: Router) -> bool:
    """Whether some inputs of the task "document" may take other modules than those of no task."""
    tasks = {task for task, _ in router.route_mappings}
    if DOCUMENT in tasks:
        return True
    if DOCUMENT not in router.sub_modules:
        return False
    other_names = router.sub_modules.keys() - {QUERY, DOCUMENT}  # maybe those of modalities
    return router.default_route != DOCUMENT or bool(other_names)


def _treats_documents(module: nn.Module) -> bool:
    """Whether a module treats documents in a way of its own, by length or by its chat template."""
    return isinstance(module, Transformer) and (
        module.document_length is not None or module._chat_template_declares_task()
    )


def first_module(network: BaseModel, task: str | None, modality: str) -> nn.Module | None:
    """The module that inputs of a modality go into, for a task or none; None where there is no
    way."""
    module = network[0]
    if isinstance(module, Router):
        try:
            route = module._resolve_route(task=task, modality=modality)
        except ValueError:
            route = None
        if route is None:
            return None
        module = next(iter(module.sub_modules[route].children()))
    taken = getattr(module, "modalities", [TEXT])
    return module if modality in taken else None


class TextLengths:
    """How many tokens of a text a network cuts off.

    Only a text that may be too long is tokenized for it: a token has a byte at least. The tokenizer
    is a copy, since threads that share one must not change whether it truncates.
    """

    def __init__(self, network: BaseModel, task: str | None, prompt: str) -> None:
        module = first_module(network, task, TEXT)
        length = _longest(module, task) if isinstance(module, Transformer) else None
        self._tokenizer: Any = None
        if not isinstance(module, Transformer) or length is None:
            return
        tokenizer: Any = copy.deepcopy(module.tokenizer)
        self._tokenizer = tokenizer
        around = len(tokenizer(prompt)["input_ids"])  # from now on it does not truncate
        if "message" in module.modality_config:  # what the chat template puts around a text
            made = network.preprocess([{"text": ""}], prompt=prompt or None, task=task)
            around = int(made["attention_mask"].sum())
        self._room = max(0, length - around)

    def cut(self, texts: Sequence[str]) -> np.ndarray:
        """B texts -> (B,) int64."""
        counts = np.zeros(len(texts), np.int64)
        if self._tokenizer is None:
            return counts
        long = [at for at, text in enumerate(texts) if len(text.encode()) > self._room]
        if long:
            some = [texts[at] for at in long]
            made = self._tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
            counts[long] = [max(0, len(ids) - self._room) for ids in made]
        return counts


def _longest(module: Transformer, task: str | None) -> int | None:
    """How many tokens a text may have, special ones counted; None without a limit."""
    if module.tokenizer is None:
        return None
    own = {QUERY: module.query_length, DOCUMENT: module.document_length, None: None}[task]
    given: Any = module.processing_kwargs
    settings = {"truncation": True, "max_length": own or module.tokenizer.model_max_length}
    settings |= given.get("text", {}) | given.get("common", {})
    return settings["max_length"] if settings["truncation"] else None
