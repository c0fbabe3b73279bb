"""Generation: first tokens -> the tokens after them, greedily, by beams, or drawn.

It knows of a model only how to take one step: the last ids of R rows and a state -> logits of the
next ids and the state after. So the same code writes texts and pictures. Rows are independent: a
row gives the same tokens in a batch as alone, drawn ones too.

    greedy   the likeliest token each time
    beams    the `beams` likeliest sequences are kept; of those that ended, the one with the highest
             mean log probability a token, its end included, is taken (Wu et al., Google's Neural
             Machine Translation System, 2016, with length penalty 1)
    drawn    from the fewest likeliest tokens that have together probability `top_p` (Holtzman et
             al., The Curious Case of Neural Text Degeneration, 2020), at a temperature
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class State(Protocol):
    """What a model remembers of R rows."""

    def take(self, rows: Tensor, /) -> Self:
        """Rows (R',) int64, in their order, each as often as it is named."""
        ...

    def reorder(self, rows: Tensor, /) -> Self:
        """The same of as many rows, where row i and row `rows[i]` are of one input: nothing that
        was made of the input alone need be copied."""
        ...


S = TypeVar("S", bound=State)
Step = Callable[[Tensor, S], tuple[Tensor, S]]
"""ids int64 (R,) and the state before them -> logits (R, V) of the next ids, the state after."""


@dataclass(frozen=True)
class GenerateSettings:
    """steps: most tokens, the end included. end: the id that ends a sequence, None for sequences of
    `steps` tokens. beams: 1 is greedy. temperature: of drawing, 0 draws nothing; top_p as above.
    ValueError for beams that are drawn, and for values out of range.
    """

    steps: int
    end: int | None
    beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.beams < 1:
            raise ValueError(f"steps {self.steps}, beams {self.beams}: expected 1 or more")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature}, top_p {self.top_p}: expected 0 or more, and "
                "more than 0 up to 1"
            )
        if self.beams > 1 and self.temperature:
            raise ValueError("beams are not drawn: expected beams 1 or temperature 0")


@dataclass(frozen=True)
class Generated:
    """tokens: of each of B rows, without the end. log_probability: (B,) float32, the mean of each
    row's tokens, the end included. ended: (B,) bool, False where `steps` cut the row.
    """

    tokens: list[list[int]]
    log_probability: Tensor
    ended: Tensor


def generate(
    step: Step[S],
    first: Tensor,
    state: S,
    settings: GenerateSettings,
    seeds: Sequence[int] | None = None,
) -> Generated:
    """B rows from their first ids, int64 (B,). seeds: one a row, needed where tokens are drawn."""
    if settings.beams > 1:
        return _beams(step, first, state, settings)
    if settings.temperature and (seeds is None or len(seeds) != len(first)):
        raise ValueError("drawn tokens: expected one seed a row")
    draws = [torch.Generator().manual_seed(seed) for seed in seeds or ()]
    size, device = len(first), first.device
    alive = torch.ones(size, dtype=torch.bool, device=device)
    total = torch.zeros(size, device=device)
    lengths = torch.zeros(size, dtype=torch.int64, device=device)
    written = torch.zeros(size, settings.steps, dtype=torch.int64, device=device)
    ids, rows = first, torch.arange(size, device=device)  # rows: those that a step is taken of
    for at in range(settings.steps):
        logits, state = step(ids, state)
        logs = logits.float().log_softmax(dim=-1)  # (R, V)
        if settings.temperature:
            ids = _draw(logs, settings, [draws[row] for row in rows.tolist()])
        else:
            ids = logs.argmax(dim=-1)
        goes_on = alive[rows]
        total[rows] += torch.where(goes_on, logs.gather(1, ids[:, None])[:, 0], 0)
        lengths[rows] += goes_on
        written[rows, at] = ids
        if settings.end is not None:
            alive[rows] &= ids != settings.end
            count = int(alive.sum())
            if not count:
                break
            if count <= len(rows) // 2:  # copying a state pays where half of it is left out
                kept = alive[rows].nonzero()[:, 0]
                ids, rows, state = ids[kept], rows[kept], state.take(kept)
    ended = ~alive if settings.end is not None else torch.ones_like(alive)
    cut = int(settings.end is not None)
    tokens = [
        row[: length - cut] if done else row[:length]
        for row, length, done in zip(
            written.tolist(), lengths.tolist(), ended.tolist(), strict=True
        )
    ]
    return Generated(tokens, total / lengths, ended)


def _draw(logs: Tensor, settings: GenerateSettings, draws: Sequence[torch.Generator]) -> Tensor:
    """Log probabilities (B, V) -> ids (B,), each row by its own generator."""
    chances = (logs / settings.temperature).softmax(dim=-1)
    sorted_chances, order = chances.sort(dim=-1, descending=True, stable=True)
    sums = sorted_chances.cumsum(dim=-1)
    kept = sums - sorted_chances < settings.top_p  # the likeliest is always among them
    sums = (sorted_chances * kept).cumsum(dim=-1)
    points = torch.cat([torch.rand(1, generator=draw) for draw in draws]).to(logs.device)
    at = torch.searchsorted(sums, (points * sums[:, -1])[:, None], right=True)[:, 0]
    # Rounding may lead past the last that is kept, and of NaN none is: then any token will do, as
    # the row's log probability is NaN.
    last = (kept.sum(dim=-1) - 1).clamp(min=0)
    return order.gather(1, torch.minimum(at, last)[:, None])[:, 0]


@dataclass
class _Item:
    """Beams of one row: sequences that ended, as (mean log probability, tokens)."""

    done: list[tuple[float, list[int]]]

    def add(self, score: float, tokens: list[int], beams: int) -> None:
        """Keep the `beams` best; of equals, those that ended first."""
        self.done.append((score, tokens))
        self.done.sort(key=lambda pair: -pair[0])
        del self.done[beams:]

    def is_final(self, best: float, settings: GenerateSettings) -> bool:
        """Can no sequence that goes on from log probability `best` or less come among the best
        any more? Its mean is at most best / steps."""
        full = len(self.done) == settings.beams
        return best == -torch.inf or (full and self.done[-1][0] >= best / settings.steps)


def _beams(step: Step[S], first: Tensor, state: S, settings: GenerateSettings) -> Generated:
    """As `generate`; a row's beams lie next to each other, R = B x beams, after the first step, in
    which all of them would be the same."""
    beams, size, device = settings.beams, len(first), first.device
    ids, width = first, 1
    totals = torch.zeros(size, 1, device=device)
    sequences: list[list[list[int]]] = [[[]] for _ in range(size)]
    items = [_Item([]) for _ in range(size)]
    for length in range(1, settings.steps + 1):
        logits, state = step(ids, state)
        logs = logits.float().log_softmax(dim=-1).unflatten(0, (size, width))  # (B, beams, V)
        vocabulary = logs.shape[-1]
        sums = (totals[..., None] + logs).flatten(1)  # (B, beams V)
        # Of 2 x beams candidates at most `beams` end, one a beam: as many go on.
        count = min(2 * beams, sums.shape[1])
        values, places = sums.topk(count, dim=1)
        parents, tokens, totals = _go_on(
            values, places, vocabulary, length, settings, items, sequences
        )
        rows = torch.arange(size, device=device)[:, None] * width
        rows = (rows + parents.to(device)).flatten()
        state = state.take(rows) if width < beams else state.reorder(rows)
        ids, width = tokens.to(device).flatten(), beams
        totals = totals.to(device)
        best = totals.amax(dim=1).tolist()
        if all(item.is_final(b, settings) for item, b in zip(items, best, strict=True)):
            break
    return _best(items, totals, sequences, settings)


def _go_on(
    values: Tensor,
    places: Tensor,
    vocabulary: int,
    length: int,
    settings: GenerateSettings,
    items: Sequence[_Item],
    sequences: list[list[list[int]]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Candidates of each row, the best first -> parents, tokens and sums (B, beams) of those that
    go on; those that end are added to `items`, and `sequences` are replaced."""
    beams = settings.beams
    parents = torch.zeros(len(items), beams, dtype=torch.int64)
    tokens = torch.zeros(len(items), beams, dtype=torch.int64)
    totals = torch.full((len(items), beams), -torch.inf)
    for row, item in enumerate(items):
        old, new = sequences[row], []
        for value, place in zip(values[row].tolist(), places[row].tolist(), strict=True):
            parent, token = divmod(place, vocabulary)
            if value == -torch.inf or len(new) == beams:
                break
            if token == settings.end:
                item.add(value / length, old[parent], beams)
                continue
            parents[row, len(new)], tokens[row, len(new)] = parent, token
            totals[row, len(new)] = value
            new.append([*old[parent], token])
        sequences[row] = new + [[] for _ in range(beams - len(new))]
    return parents, tokens, totals


def _best(
    items: Sequence[_Item],
    totals: Tensor,
    sequences: Sequence[list[list[int]]],
    settings: GenerateSettings,
) -> Generated:
    """The best that ended of each row; where none has, the best that `steps` cut."""
    tokens, means, ended = [], [], []
    for row, item in enumerate(items):
        if item.done:
            mean, kept = item.done[0]
        else:
            at = int(totals[row].argmax())
            kept = sequences[row][at]
            mean = float(totals[row, at]) / len(kept)
        tokens.append(kept)
        means.append(mean)
        ended.append(bool(item.done) or settings.end is None)
    return Generated(tokens, torch.tensor(means), torch.tensor(ended))
