"""The answerer that ships: the joint decoder of a model folder, in English and Chinese; where the
folder has image tokens, it draws too.

`pocket` and `pocket:DIR`, as the encoder of that name, from the same weights. Which tasks a model
has is in its config.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chiasm.pipeline.encoders import pocket
from chiasm.pipeline.encoders.answerers import (
    GenerateSettings,
    Reply,
    Request,
    require_task,
)
from chiasm.pipeline.encoders.pocket import PocketEncoder
from chiasm.pipeline.encoders.protocols import Array
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model import generate as generation
from chiasm.pipeline.model.decoder import DecoderState
from chiasm.pipeline.model.inference import image_modality, text_modality
from chiasm.pipeline.model.tasks import TASKS, Head, as_written
from chiasm.pipeline.model.tokenizer import END
from chiasm.pipeline.pretrained import EncoderSettings

BLOCK = 256  # rows that are generated at once, beams counted: some 100 MB of keys and values


def load(model: str, settings: EncoderSettings) -> PocketAnswerer:
    """The answerer of a model folder, the shipped one for an empty name; UsageError for one whose
    model has no decoder."""
    return PocketAnswerer(pocket.load(model, settings))


class PocketAnswerer:
    """A `JointNetwork` with a decoder behind the protocol `Answerer`."""

    def __init__(self, encoder: PocketEncoder) -> None:
        network = encoder.network
        if network.decoder is None:
            raise UsageError(
                f"model {encoder.name}",
                expected="one with a decoder",
                found="one that embeds and matches",
                do="take --model hf:ID_OR_DIR, such as a BLIP or a model that chats about pictures",
            )
        self._encoder, self._network, self._decoder = encoder, network, network.decoder
        self.name, self.precision, self.device = encoder.name, encoder.precision, encoder.device
        self.fingerprint, self.modalities = encoder.fingerprint, encoder.modalities
        self.tasks: Mapping[str, tuple[str, ...]] = self._decoder.ids.tasks()

    def preprocess(self, modality: str, raw: Any) -> Any:
        """As that of the encoder."""
        return self._encoder.preprocess(modality, raw)

    def cost(self, modality: str, item: Any) -> int:
        """As that of the encoder."""
        return self._encoder.cost(modality, item)

    @torch.inference_mode()
    def answer(self, requests: Sequence[Request], settings: GenerateSettings) -> list[Reply]:
        """B requests -> B replies; a picture that several share goes through its tower once.
        UsageError for a task or a language that the model lacks."""
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            require_task(self, request.task, request.language)
            groups[request.task].append(number)
        replies: dict[int, Reply] = {}
        for task, numbers in groups.items():
            most = max(BLOCK // settings.beams, 1)
            for start in range(0, len(numbers), most):
                some = numbers[start : start + most]
                made = self._reply(task, [requests[number] for number in some], settings)
                replies.update(zip(some, made, strict=True))
        return [replies[number] for number in range(len(requests))]

    def _reply(
        self, task: str, requests: Sequence[Request], settings: GenerateSettings
    ) -> list[Reply]:
        """Replies to requests of one task."""
        tokenizer, context = self._encoder.tokenizer, self._network.config.text.context
        prefixes = [self._decoder.ids.prefix(task, request.language) for request in requests]
        found = self._generate(
            TASKS[task].head, torch.tensor(prefixes), self._start(task, requests), settings
        )
        confidence = found.log_probability.exp().tolist()
        drawn = self._draw(found.tokens) if TASKS[task].head == "codes" else None
        return [
            Reply(
                "" if drawn else as_written(tokenizer.decode(tokens), request.language),
                image=drawn[row] if drawn else None,
                confidence=confidence[row],
                truncated=tokenizer.tokens_cut(request.text or "", context),
            )
            for row, (tokens, request) in enumerate(zip(found.tokens, requests, strict=True))
        ]

    def _draw(self, codes: list[list[int]]) -> list[Array]:
        """Codes of pictures -> the pictures, uint8 (S, S, 3) each."""
        tokens = self._network.image_tokens
        assert tokens is not None
        drawn = tokens.decode(torch.tensor(codes, device=self._network.log_scale.device))
        return list(drawn.permute(0, 2, 3, 1).contiguous().cpu().numpy())

    def _start(self, task: str, requests: Sequence[Request]) -> DecoderState:
        """What the decoder reads of requests of one task."""
        text = image = None
        if TASKS[task].source:
            texts = [request.text or "" for request in requests]
            text = text_modality(self._network, self._encoder.tokenizer, texts)
        if not TASKS[task].picture:
            return self._decoder.start(text, None)
        pictures = {id(request.image): request.image for request in requests}
        numbers = {key: number for number, key in enumerate(pictures)}
        rows = torch.tensor([numbers[id(request.image)] for request in requests])
        image = image_modality(self._network, list(pictures.values()))
        state = self._decoder.start(None, image).take(rows.to(image.tokens.device))
        return state if text is None else self._decoder.with_text(state, text)

    def _generate(
        self, head: Head, first: Tensor, state: DecoderState, settings: GenerateSettings
    ) -> generation.Generated:
        decoder, sampling = self._decoder, settings.sampling
        codes, most = self._network.config.image_tokens, decoder.config.context - 1
        steps, end = min(most, settings.max_tokens or most), END
        if head == "codes":  # a picture has as many as it has, whatever is asked for
            assert codes is not None
            steps, end = codes.tokens, None
        options = generation.GenerateSettings(
            steps=steps,
            end=end,
            beams=settings.beams,
            temperature=sampling.temperature if sampling else 0.0,
            top_p=sampling.top_p if sampling else 1.0,
        )
        seeds = [sampling.seed] * len(first) if sampling else None
        first = first.to(state.text_mask.device)
        return generation.generate(decoder.step(head), first, state, options, seeds)
