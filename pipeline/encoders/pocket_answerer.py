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

from chiasm.pipeline.encoders import pocket
from chiasm.pipeline.encoders.answerers import (
    GenerateSettings,
    Reply,
    Request,
    require_task,
)
from chiasm.pipeline.encoders.faults import Fault
from chiasm.pipeline.encoders.pocket import PocketEncoder
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.model import generate as generation
from chiasm.pipeline.model.decoder import DecoderState
from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.inference import image_modality, text_modality
from chiasm.pipeline.model.tasks import TASKS, Head, as_written
from chiasm.pipeline.model.tokenizer import END
from chiasm.pipeline.pretrained import EncoderSettings

# Rows that are generated at once, beams and candidates counted: some 100 MB of keys and values.
BLOCK = 256
CANDIDATES = 32  # pictures that are drawn of a text where nobody says how many


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
            candidates = self._candidates(settings) if TASKS[task].head == "codes" else 1
            most = max(BLOCK // (settings.beams * candidates), 1)
            for start in range(0, len(numbers), most):
                some = numbers[start : start + most]
                made = self._reply(task, [requests[number] for number in some], settings)
                replies.update(zip(some, made, strict=True))
        return [replies[number] for number in range(len(requests))]

    def _reply(
        self, task: str, requests: Sequence[Request], settings: GenerateSettings
    ) -> list[Reply]:
        """Replies to requests of one task."""
        if TASKS[task].head == "codes":
            return self._drawings(task, requests, settings)
        prefixes = [self._decoder.ids.prefix(task, request.language) for request in requests]
        found = self._generate("text", prefixes, self._start(task, requests), settings)
        confidence, ended = found.log_probability.exp().tolist(), found.ended.tolist()
        return [
            Reply(
                as_written(self._encoder.tokenizer.decode(tokens), request.language),
                confidence=confidence[row],
                truncated=self._tokens_cut(request),
                endless=not ended[row] and len(tokens) == self._room,
            )
            for row, (tokens, request) in enumerate(zip(found.tokens, requests, strict=True))
        ]

    def _drawings(
        self, task: str, requests: Sequence[Request], settings: GenerateSettings
    ) -> list[Reply]:
        """Replies to requests for pictures: of the candidates of each, the best."""
        tokens, count = self._network.image_tokens, self._candidates(settings)
        assert tokens is not None
        text = self._texts(requests)
        rows = torch.arange(len(requests), device=text.tokens.device).repeat_interleave(count)
        state = self._decoder.start(self._network.source(text, None), None).take(rows)
        prefixes = [self._decoder.ids.prefix(task)] * len(rows)
        found = self._generate("codes", prefixes, state, settings)
        drawn = tokens.decode(torch.tensor(found.tokens, device=rows.device))  # (R, 3, S, S)
        best = torch.arange(0, len(rows), count)
        if count > 1:
            image = self._network.image_modality(drawn)
            matches = self._network.match(text.take(rows), image).logit.view(-1, count)
            finite = matches.isfinite()
            best = best + matches.float().masked_fill(~finite, -torch.inf).argmax(dim=1).cpu()
            if not finite.any(dim=1).all():
                raise Fault("not_finite", "the log odds of every candidate are NaN or infinity")
        pictures = drawn.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        confidence = found.log_probability.exp()[best.to(found.log_probability.device)].tolist()
        return [
            Reply(
                "",
                image=pictures[row],
                confidence=confidence[number],
                truncated=self._tokens_cut(request),
            )
            for number, (row, request) in enumerate(zip(best.tolist(), requests, strict=True))
        ]

    @property
    def _room(self) -> int:
        """Tokens of the longest answer, its end included: a prefix is read and the end is not."""
        return self._decoder.config.context

    def _candidates(self, settings: GenerateSettings) -> int:
        """How many pictures to draw of a text; UsageError where nothing can choose among them."""
        matches, count = self._network.matching is not None, settings.candidates
        if count is None:
            return CANDIDATES if settings.sampling and matches else 1
        if count > 1 and not matches:
            raise UsageError(
                f"model {self.name}",
                expected="one that matches, to choose among candidates",
                found="one that does not",
                do="draw one candidate (--candidates 1)",
            )
        return count

    def _tokens_cut(self, request: Request) -> int:
        context = self._network.config.text.context
        return self._encoder.tokenizer.tokens_cut(request.text or "", context)

    def _texts(self, requests: Sequence[Request]) -> Modality:
        """The requests' texts through their tower."""
        texts = [request.text or "" for request in requests]
        return text_modality(self._network, self._encoder.tokenizer, texts)

    def _start(self, task: str, requests: Sequence[Request]) -> DecoderState:
        """What the decoder reads of requests of one task that has a picture."""
        text = self._texts(requests) if TASKS[task].source else None
        pictures = {id(request.image): request.image for request in requests}
        numbers = {key: number for number, key in enumerate(pictures)}
        rows = torch.tensor([numbers[id(request.image)] for request in requests])
        image = image_modality(self._network, list(pictures.values()))
        rows = rows.to(image.tokens.device)
        state = self._decoder.start(None, image).take(rows)
        if text is None:
            return state
        return self._decoder.with_text(state, self._network.source(text, image.take(rows)))

    def _generate(
        self, head: Head, prefixes: list[int], state: DecoderState, settings: GenerateSettings
    ) -> generation.Generated:
        """Tokens after the prefix of each row; candidates of one request are drawn by seeds that
        follow that of the settings."""
        decoder, sampling = self._decoder, settings.sampling
        codes = self._network.config.image_tokens
        steps, end = min(self._room, settings.max_tokens or self._room), END
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
        seeds = None
        if sampling:
            count = self._candidates(settings) if head == "codes" else 1
            seeds = [_seed(sampling.seed + row % count) for row in range(len(prefixes))]
        first = torch.tensor(prefixes, device=state.text_mask.device)
        return generation.generate(decoder.step(head), first, state, options, seeds)


def _seed(number: int) -> int:
    """The integer of 64 bits that is equal to this modulo 2 ** 64."""
    return (number + 2**63) % 2**64 - 2**63
