"""What all models of transformers that answer share: from requests to the tensors of a network, in
groups that need no padding, and with texts cut where they are too long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from chiasm.pipeline.encoders.answerers import GenerateSettings, Reply, Request, require_task
from chiasm.pipeline.encoders.base import require_modality
from chiasm.pipeline.encoders.faults import Fault
from chiasm.pipeline.encoders.huggingface_generate import Generator
from chiasm.pipeline.encoders.protocols import Input
from chiasm.pipeline.pretrained.device_and_precision import PRECISIONS
from chiasm.pipeline.pretrained.hub import GENERATION_FILE, ModelFolder
from chiasm.pipeline.records import IMAGE, TEXT

ANY_LENGTH = 1 << 30  # texts are cut here, and no tokenizer warns of their length


class HuggingFaceAnswerer:
    """What all kinds share; see the protocol `chiasm.pipeline.encoders.Answerer`.

    A kind says which tasks it has and what goes into the network for some requests. Where those go
    in together without padding, `group` is the same for them.
    """

    tasks: Mapping[str, tuple[str, ...]]
    prompts: Mapping[Any, str] = {}

    def __init__(
        self,
        folder: ModelFolder,
        processor: Any,
        network: Any,
        precision: str,
        device: torch.device,
    ) -> None:
        self.name, self.precision, self.device = folder.name, precision, str(device)
        self._processor, self._tokenizer = processor, processor.tokenizer
        self._tokenizer.model_max_length = ANY_LENGTH
        self._network, self._device, self._dtype = network, device, PRECISIONS[precision]
        self.modalities = {IMAGE: Input(side=self._side()), TEXT: Input()}
        prompts = {" ".join(key): text for key, text in self.prompts.items()}
        self.fingerprint = folder.fingerprint(
            {"network": type(network).__name__, "prompts": prompts}, [GENERATION_FILE]
        )
        added = self._tokenizer.added_tokens_decoder.values()
        self._control = sorted({str(token) for token in added if token.special})

    def preprocess(self, modality: str, raw: Any) -> Any:
        """A picture uint8 (H, W, 3) -> what the network takes of it, float32 (3, H', W'). A text
        stays as it is."""
        require_modality(self, modality)
        if modality == TEXT:
            return raw
        made = self._processor.image_processor(Image.fromarray(raw), return_tensors="np")
        return made["pixel_values"][0]

    def cost(self, modality: str, item: Any) -> int:
        return 4 * (item.size if isinstance(item, np.ndarray) else len(item))

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request], settings: GenerateSettings) -> list[Reply]:
        """B requests -> B replies; texts are cut to the model's length."""
        for request in requests:
            require_task(self, request.task, request.language)
        groups: defaultdict[Hashable, list[int]] = defaultdict(list)
        clean = [self._as_words(request) for request in requests]
        for number, request in enumerate(clean):
            groups[self.group(request, number, settings)].append(number)
        replies: dict[int, Reply] = {}
        for numbers in groups.values():
            most = self._most_rows(settings)
            for start in range(0, len(numbers), most):
                some = numbers[start : start + most]
                made = self._reply([clean[number] for number in some], settings)
                replies.update(zip(some, made, strict=True))
        return [replies[number] for number in range(len(requests))]

    def group(self, request: Request, number: int, settings: GenerateSettings) -> Hashable:
        """Which requests go into the network together; number: of this one."""
        raise NotImplementedError

    def inputs(self, requests: Sequence[Request]) -> Any:
        """B requests of a group -> the arguments of the network, on the CPU."""
        raise NotImplementedError

    def _side(self) -> int | None:
        """The shorter side that the processor wants of a picture; None for all of it."""
        size = self._processor.image_processor.size
        return size.height or size.shortest_edge

    def _context(self, settings: GenerateSettings) -> int | None:
        """The most tokens that a request may have; None for any number."""
        return self._network.config.get_text_config().max_position_embeddings

    def _most_rows(self, settings: GenerateSettings) -> int:
        """How many requests of a group go in at once."""
        return ANY_LENGTH

    def _reply(self, requests: list[Request], settings: GenerateSettings) -> list[Reply]:
        raise NotImplementedError

    def _as_words(self, request: Request) -> Request:
        """The request with a text that no tokenizer takes for a control token, and without lone
        surrogates, which no tokenizer takes at all."""
        if request.text is None:
            return request
        text = request.text.encode("utf-8", "replace").decode("utf-8")
        for token in self._control:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return replace(request, text=text)

    def _fitted(
        self, requests: list[Request], settings: GenerateSettings
    ) -> tuple[dict[str, torch.Tensor], list[int]]:
        """The arguments of the network on its device, and how many tokens of each text were cut so
        that the request fits. Raises Fault where nothing of a text would be left."""
        most, cuts = self._context(settings), [0] * len(requests)
        while True:
            inputs = self.inputs(requests)
            mask = inputs.get("attention_mask")
            lengths = [] if mask is None or most is None else mask.sum(1).tolist()
            over = {row: n - most for row, n in enumerate(lengths) if most and n > most}
            if not over:
                break
            for row, excess in over.items():
                text, cut = self._cut(requests[row].text or "", excess)
                if not text.strip():
                    rest = lengths[row] - cut
                    raise Fault("refused", f"{rest} tokens without the text, of {most}")
                requests[row], cuts[row] = replace(requests[row], text=text), cuts[row] + cut
        return {name: self._placed(value) for name, value in inputs.items()}, cuts

    def _cut(self, text: str, excess: int) -> tuple[str, int]:
        """The text without its last tokens, and how many those were."""
        starts = [
            start
            for start, end in self._tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
        ]
        kept = max(len(starts) - excess, 0)
        return (text[: starts[kept]] if kept < len(starts) else text), len(starts) - kept

    def _placed(self, value: Any) -> torch.Tensor:
        tensor = torch.as_tensor(value)
        dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device, dtype)

    def _length_group(
        self, prompt: str, number: int, settings: GenerateSettings, before: int = 0
    ) -> Hashable:
        """The same for prompts of as many tokens; one that is too long is alone. before: tokens in
        front of the prompt."""
        length = before + len(self._tokenizer(prompt)["input_ids"])
        most = self._context(settings)
        return ("alone", number) if most is not None and length > most else length


class Generating(HuggingFaceAnswerer):
    """Kinds whose answer is generated token by token."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._generator = Generator(self._network)

    def _most_rows(self, settings: GenerateSettings) -> int:
        return self._generator.most_rows(settings)

    def _reply(self, requests: list[Request], settings: GenerateSettings) -> list[Reply]:
        inputs, cuts = self._fitted(requests, settings)
        if len(requests) > 1 and self._generator.is_bounded(inputs, settings):
            # Each answer may be as long as its own prompt leaves room for.
            return [reply for one in requests for reply in self._reply([one], settings)]
        made = self._generator(inputs, settings)
        texts = self._tokenizer.batch_decode(made.tokens, skip_special_tokens=True)
        return [
            Reply(text.strip(), confidence=confidence, truncated=cut)
            for text, confidence, cut in zip(texts, made.confidence, cuts, strict=True)
        ]
