"""The joint decoder: what it attends to, its state, and generation against slow references."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from chiasm.pipeline.model.config import DecoderConfig, ImageTokensConfig
from chiasm.pipeline.model.decoder import Decoder
from chiasm.pipeline.model.fusion import Modality
from chiasm.pipeline.model.generate import Generated, GenerateSettings, generate
from chiasm.pipeline.model.tasks import PREFIXES, TASKS, TargetIds

WIDTHS, TEXT_IDS, CODES, PATCHES = (12, 20), 11, 6, 9
CONFIG = DecoderConfig(width=16, depth=2, heads=2, context=10)


def decoder(grounding=1):
    torch.manual_seed(0)
    drawing = ImageTokensConfig(side=8, stride=4, levels=(3, 2))  # 2 x 2 codes
    config = replace(CONFIG, grounding=grounding)
    made = Decoder(config, WIDTHS, TEXT_IDS, drawing, PATCHES).eval()
    made.reset_parameters()
    with torch.no_grad():  # larger logits: no near ties between tokens
        made.embedding.weight.mul_(60)
    return made


def modality(tokens, width, lengths, seed):
    chance = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens)[None] < torch.tensor(lengths)[:, None]
    return Modality(
        torch.randn(len(lengths), tokens, width, generator=chance), mask, torch.zeros(0)
    )


def inputs():
    """Three rows: both, a picture alone, a text alone."""
    return modality(5, 12, [5, 0, 2], seed=1), modality(9, 20, [9, 9, 0], seed=2)


IDS = torch.tensor([[12, 3, 4, 9, 1], [13, 7, 7, 2, 2], [14, 1, 8, 2, 5]])


@torch.no_grad()
def logits(made, ids, state, head="text"):
    hidden, state = made(ids, state, head)
    return made.logits(hidden, head), state


def attended(attention, x, context, mask):
    """Attention row by row, with the module's own projections and the formula."""
    keys, values = (item.transpose(1, 2).flatten(2) for item in attention.keys_values(context))
    query, heads = attention.query(x), attention.heads
    width = x.shape[-1] // heads
    out = torch.zeros_like(query)
    for b, h, t in itertools.product(range(len(x)), range(heads), range(x.shape[1])):
        part = slice(h * width, (h + 1) * width)
        seen = [s for s in range(context.shape[1]) if mask[b][t][s]]
        if seen:
            scores = torch.stack([query[b, t, part] @ keys[b, s, part] for s in seen])
            weights = (scores / math.sqrt(width)).softmax(0)
            out[b, t, part] = sum(
                w * values[b, s, part] for w, s in zip(weights, seen, strict=True)
            )
    return attention.out(out)


@torch.no_grad()
def written_out(made, ids, text, image):
    """The decoder as its docstring has it, no token's work shared with another's."""
    length = ids.shape[1]
    causal = [[[s <= t for s in range(length)] for t in range(length)]] * len(ids)
    of_text = [[row.tolist()] * length for row in text.mask]
    of_image = [[row.tolist()] * length for row in image.mask]
    words = made.input_projections[0](text.tokens)
    patches = made.input_projections[1](image.tokens) + made.patch_position
    among = [[row.tolist()] * words.shape[1] for row in text.mask]
    seen = [[row.tolist()] * words.shape[1] for row in image.mask]
    for block in made.grounding:
        normed, read = block.attention_norm(words), block.context_norm(patches)
        words = words + attended(block.attention, normed, normed, among)
        words = words + attended(block.cross, block.cross_norm(words), read, seen)
        words = words + block.mlp(block.mlp_norm(words))
    x = made.embedding(ids) + made.position[:, :length]
    for block in made.blocks:
        normed = block.attention_norm(x)
        x = x + attended(block.attention, normed, normed, causal)
        x = x + attended(block.cross, block.cross_norm(x), block.context_norm(words), of_text)
        read = block.image_context_norm(patches)
        x = x + attended(block.image_cross, block.image_norm(x), read, of_image)
        x = x + block.mlp(block.mlp_norm(x))
    return made.norm(x)


@pytest.mark.parametrize("grounding", [0, 2])
def test_the_decoder_is_its_formula(grounding):
    made, (text, image) = decoder(grounding), inputs()
    hidden = written_out(made, IDS, text, image)
    got, _ = made(IDS, made.start(text, image))
    torch.testing.assert_close(got, hidden, rtol=0, atol=1e-5)
    weight = made.embedding.weight
    torch.testing.assert_close(made.logits(got, "text"), linear(hidden, weight[:TEXT_IDS]))
    codes = weight[TEXT_IDS + len(PREFIXES) :]
    torch.testing.assert_close(made.logits(got, "codes"), linear(hidden, codes))


@pytest.mark.parametrize("cuts", [[1] * 5, [2, 3], [4, 1]])
def test_tokens_one_after_the_other_give_what_all_at_once_do(cuts):
    made, (text, image) = decoder(), inputs()
    whole, _ = logits(made, IDS, made.start(text, image))
    state, parts = made.start(text, image), []
    for part in IDS.split(cuts, dim=1):
        found, state = logits(made, part, state)
        parts.append(found)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
    assert state.length == 5


def test_what_comes_later_changes_nothing_before():
    made, (text, image) = decoder(), inputs()
    one, _ = logits(made, IDS, made.start(text, image))
    changed = IDS.clone()
    changed[:, 3:] = 6
    other, _ = logits(made, changed, made.start(text, image))
    torch.testing.assert_close(one[:, :3], other[:, :3])
    assert (one[:, 3:] - other[:, 3:]).abs().amin() > 1e-6


def test_padding_and_company_change_nothing():
    made, (text, image) = decoder(), inputs()
    whole, _ = logits(made, IDS, made.start(text, image))
    for row, length in enumerate(text.mask.sum(1).tolist()):
        cut = slice(row, row + 1)
        words = Modality(text.tokens[cut, :length], text.mask[cut, :length], text.vector)
        patches = Modality(image.tokens[cut], image.mask[cut], image.vector)
        has = image.mask[row].any()
        state = made.start(words if length else None, patches if has else None)
        alone, _ = logits(made, IDS[cut], state)
        torch.testing.assert_close(alone, whole[cut], rtol=0, atol=1e-5)


def test_it_reads_the_text_the_picture_and_where_a_patch_is():
    made, (text, image) = decoder(), inputs()
    one, _ = logits(made, IDS, made.start(text, image))
    order = torch.tensor([1, 0, *range(2, 9)])
    moved = Modality(image.tokens[:, order], image.mask, image.vector)
    for other in (made.start(None, image), made.start(text, None), made.start(text, moved)):
        found, _ = logits(made, IDS, other)
        assert (found[0] - one[0]).abs().amax() > 1e-3


def test_one_picture_and_its_many_questions():
    made, (_, image) = decoder(), inputs()
    rows = torch.tensor([0, 1, 1, 0])
    questions = modality(4, 12, [4, 3, 1, 2], seed=5)
    shared = made.with_text(made.start(None, image).take(rows), questions)
    apart = made.start(questions, Modality(image.tokens[rows], image.mask[rows], image.vector))
    ids = IDS[rows]
    torch.testing.assert_close(logits(made, ids, shared)[0], logits(made, ids, apart)[0])


def test_a_target_longer_than_the_context_is_refused():
    made, (text, image) = decoder(), inputs()
    with pytest.raises(ValueError, match="target of 5 tokens: expected at most 4"):
        made(IDS, made.start(text, None), "codes")
    of_texts = Decoder(CONFIG, WIDTHS, TEXT_IDS, None, PATCHES)
    with pytest.raises(ValueError, match="expected one with codes of pictures"):
        of_texts(IDS, of_texts.start(text, None), "codes")
    _, state = made(IDS, made.start(text, image))
    with pytest.raises(ValueError, match="target of 11 tokens: expected at most 10"):
        made(torch.ones(3, 6, dtype=torch.int64), state)
    with pytest.raises(ValueError, match="found neither"):
        made.start(None, None)


def test_a_code_is_written_for_its_row_and_its_column():
    made, (text, _) = decoder(), inputs()
    assert made.code_position is not None
    ids = torch.tensor([[made.ids.prefix("imagine"), 20, 25, 22]])
    state = made.start(Modality(text.tokens[:1], text.mask[:1], text.vector), None)
    whole, _ = logits(made, ids, state, "codes")
    assert whole.shape == (1, 4, CODES)
    # One after the other, as they are generated.
    at, parts = state, []
    for part in ids.split(1, dim=1):
        found, at = logits(made, part, at, "codes")
        parts.append(found)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
    # The position of the third code, bottom left, changes what is written there and later.
    with torch.no_grad():
        made.code_position[0, 2] += torch.arange(16) % 3
    changed = (logits(made, ids, state, "codes")[0] - whole).abs().amax(-1)[0] > 1e-4
    assert changed.tolist() == [False, False, True, True]


def test_ids_of_text_prefixes_and_codes_do_not_meet():
    ids = TargetIds(TEXT_IDS, PREFIXES, CODES)
    prefixes = [
        ids.prefix(task.name, language)
        for task in TASKS.values()
        for language in task.languages or ("",)
    ]
    assert prefixes == list(range(TEXT_IDS, TEXT_IDS + len(PREFIXES)))
    assert ids.range("text") == (0, TEXT_IDS)
    assert ids.range("codes") == (TEXT_IDS + len(PREFIXES), CODES)
    assert len(ids) == TEXT_IDS + len(PREFIXES) + CODES and set(ids.tasks()) == set(TASKS)
    assert set(TargetIds(5, PREFIXES, 0).tasks()) == set(TASKS) - {"imagine"}
    assert TargetIds(5, ("caption:en",), 0).tasks() == {"caption": ("en",)}
    with pytest.raises(KeyError, match="ask:zh"):
        TargetIds(5, ("ask:en",), 0).prefix("ask", "zh")


# Generation. END is an id that the model writes now and then; a table of logits stands in where
# what is searched matters more than what is read.
END = 2
FIRST = torch.tensor([12, 13, 14])


def stepper(made):
    def step(ids, state):
        found, state = logits(made, ids[:, None], state)
        return found[:, 0], state

    return step


def slow_logs(made, tokens, row):
    """Log probabilities of the next id after `tokens`, all of it computed anew."""
    text, image = (
        Modality(m.tokens[row : row + 1], m.mask[row : row + 1], m.vector) for m in inputs()
    )
    ids = torch.tensor([[int(FIRST[row]), *tokens]])
    found, _ = logits(made, ids, made.start(text, image))
    return found[0, -1].log_softmax(-1)


def slow_beams(made, row, beams, steps, end=END):
    """Beam search with lists, without a state. One beam is greedy."""
    alive, done = [(0.0, [])], []
    for _ in range(steps):
        grown = sorted(
            (
                (total + value, [*tokens, i])
                for total, tokens in alive
                for i, value in enumerate(slow_logs(made, tokens, row).tolist())
            ),
            key=lambda pair: -pair[0],
        )
        alive = []
        for total, tokens in grown:
            if len(alive) == beams:
                break
            if tokens[-1] == end:
                done.append((total / len(tokens), tokens[:-1]))
            else:
                alive.append((total, tokens))
    if done:
        return max(done, key=lambda pair: pair[0])
    total, tokens = max(alive, key=lambda pair: pair[0])
    return total / len(tokens), tokens


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("end", [END, None])
def test_beams_in_a_batch_find_what_a_slow_search_does(beams, end):
    made = decoder()
    found = generate(
        stepper(made), FIRST, made.start(*inputs()), GenerateSettings(6, end, beams=beams)
    )
    for row in range(3):
        if beams == 1:
            mean, tokens = greedy(made, row, 6, end)
        else:
            mean, tokens = slow_beams(made, row, beams, 6, end)
        assert found.tokens[row] == tokens
        assert float(found.log_probability[row]) == pytest.approx(mean, abs=1e-4)


def test_beams_read_texts_and_pictures_once_and_step_no_beam_that_is_another():
    """Keys and values of the contexts are copied when the beams begin, and never again."""
    made, taken, widths = decoder(), [], []

    def step(ids, state):
        taken.append(state.blocks[0].text[0].data_ptr())
        widths.append(len(ids))
        return stepper(made)(ids, state)

    generate(step, FIRST, made.start(*inputs()), GenerateSettings(6, None, beams=4))
    assert widths == [3, 12, 12, 12, 12, 12]
    assert len(set(taken[1:])) == 1


def greedy(made, row, steps, end):
    tokens, total = [], 0.0
    for _ in range(steps):
        logs = slow_logs(made, tokens, row)
        tokens.append(int(logs.argmax()))
        total += float(logs.max())
        if tokens[-1] == end:
            return total / len(tokens), tokens[:-1]
    return total / len(tokens), tokens


class Position:
    """The state of a model that is a table: which row of it is next, of each row."""

    def __init__(self, tables, length):
        self.tables, self.length = tables, length

    def take(self, rows):
        return Position(self.tables[rows], self.length)

    reorder = take


def by_table(ids, state):
    """Logits of step t from a table (R, steps, V, V): they depend on the id before alone."""
    rows = torch.arange(len(ids))
    return state.tables[rows, state.length, ids], Position(state.tables, state.length + 1)


def all_sequences(table, first, steps, end):
    """Every sequence that ends, or is cut, with its mean log probability."""
    logs, size = table.log_softmax(-1), table.shape[-1]
    found = []
    for length in range(1, steps + 1):
        for tokens in itertools.product(range(size), repeat=length):
            if end in tokens[:-1] or tokens[-1] != end:
                continue
            path = [first, *tokens]
            total = sum(float(logs[t, path[t], path[t + 1]]) for t in range(length))
            found.append((total / length, list(tokens[:-1])))
    return found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_beams_as_wide_as_the_tree_find_the_best_of_all(seed):
    torch.manual_seed(seed)
    table = torch.randn(2, 3, 3, 3) * 3
    first = torch.tensor([0, 1])
    found = generate(by_table, first, Position(table, 0), GenerateSettings(3, 2, beams=9))
    for row in range(2):
        mean, tokens = max(all_sequences(table[row], int(first[row]), 3, 2))
        assert found.tokens[row] == tokens and found.ended[row]
        assert float(found.log_probability[row]) == pytest.approx(mean, abs=1e-5)


def drawn(table, seeds, **chances) -> Generated:
    first = torch.zeros(len(seeds), dtype=torch.int64)
    tables = table[None].expand(len(seeds), -1, -1, -1)
    options = GenerateSettings(len(table), None, **chances)
    return generate(by_table, first, Position(tables, 0), options, seeds)


def test_drawn_tokens_follow_their_probabilities():
    table = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1, 4, 4)
    for chances, expected in (
        ({"temperature": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"temperature": 1.0, "top_p": 0.79}, [0.5, 0.3, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.1}, [1, 0, 0, 0]),
    ):
        found = drawn(table, range(4000), **chances)
        shares = torch.bincount(torch.tensor(found.tokens)[:, 0], minlength=4) / 4000
        wanted = torch.tensor(expected) / sum(expected)
        # Five standard deviations of a share of 4,000.
        torch.testing.assert_close(shares, wanted, rtol=0, atol=0.04)
        assert (shares[wanted == 0] == 0).all()


def test_a_drawn_row_does_not_depend_on_its_batch():
    torch.manual_seed(4)
    table = torch.randn(5, 4, 4)
    together = drawn(table, [7, 8, 9], temperature=0.8, top_p=0.9)
    alone = [drawn(table, [seed], temperature=0.8, top_p=0.9) for seed in (7, 8, 9)]
    assert together.tokens == [one.tokens[0] for one in alone]
    assert len({tuple(row) for row in together.tokens}) == 3
    again = drawn(table, [7, 8, 9], temperature=0.8, top_p=0.9)
    assert again.tokens == together.tokens


def test_what_is_not_finite_is_drawn_without_an_error_and_is_seen():
    found = drawn(torch.full((2, 3, 3), torch.nan), [1], temperature=1.0)
    assert len(found.tokens[0]) == 2 and found.log_probability.isnan().all()


def test_rows_that_ended_wait_for_the_others():
    table = torch.full((4, 3, 3), -9.0)
    table[:, :, 1] = 0.0
    ends = table.clone()
    ends[1, :, 2] = 9.0
    tables = torch.stack([ends, table])
    found = generate(
        by_table, torch.tensor([0, 0]), Position(tables, 0), GenerateSettings(4, end=2)
    )
    assert found.tokens == [[1], [1, 1, 1, 1]] and found.ended.tolist() == [True, False]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_half_of_the_rows_have_ended_they_are_stepped_no_more(temperature):
    """Of eight rows six end, the first after one token; each gives what it gives alone."""
    ends = [1, 1, 1, 1, 2, 9, 3, 9]
    torch.manual_seed(5)
    tables = torch.randn(8, 6, 5, 5)
    tables[..., 2] = -torch.inf
    for row, end in enumerate(ends):
        if end <= 6:
            tables[row, end - 1, :, 2] = 99.0
    settings, widths = GenerateSettings(6, end=2, temperature=temperature), []

    def step(ids, state):
        widths.append(len(ids))
        return by_table(ids, state)

    zeros = torch.zeros(8, dtype=torch.int64)
    found = generate(step, zeros, Position(tables, 0), settings, range(8))
    assert widths == [8, 4, 4, 2, 2, 2]
    assert list(map(len, found.tokens)) == [0, 0, 0, 0, 1, 6, 2, 6]
    assert found.ended.tolist() == [end <= 6 for end in ends]
    for row in range(8):
        of_row = Position(tables[row : row + 1], 0)
        alone = generate(by_table, zeros[:1], of_row, settings, [row])
        assert alone.tokens == [found.tokens[row]]
        torch.testing.assert_close(alone.log_probability[0], found.log_probability[row])


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"steps": 0}, {"beams": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            GenerateSettings(**{"steps": 3, "end": 2, **wrong})
    with pytest.raises(ValueError, match="beams are not drawn"):
        GenerateSettings(3, 2, beams=2, temperature=1.0)
    state = Position(torch.zeros(2, 1, 2, 2), 0)
    with pytest.raises(ValueError, match="one seed a row"):
        generate(by_table, FIRST[:2] * 0, state, GenerateSettings(1, None, temperature=1.0))
