"""Facts -> captions in English and Chinese, each with the claims it makes.

A caption is made in two steps: `plan` chooses what to claim and in which order, `render_caption`
puts the claims into words of one language and one of several wordings. A complete caption states
all there is of each thing and the background, relations and places included; a partial one omits
some of it, as people do when they search.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from chiasm.pipeline.scenes.claims import RELATIONS, Claims, ThingClaim, related
from chiasm.pipeline.scenes.world import Scene, Thing

LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Caption:
    """A text, its language, and what it claims."""

    text: str
    language: str
    claims: Claims


# What a phrase may be called; the first is the commonest and is drawn half of the time.
EN: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"), "big": ("big", "large", "huge"),
    "plain": ("plain",), "striped": ("striped",), "spotted": ("spotted", "dotted"),
    "checked": ("checked", "chequered"),
    "circle": ("circle", "disc"), "house": ("house",), "boat": ("boat", "ship"),
    "face": ("face", "smiling face"), "cup": ("cup", "mug"), "car": ("car",),
    "cat": ("cat",), "purple": ("purple", "violet"),
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"), "below": ("below", "under", "beneath"),
    "meadow": ("in a meadow", "on the grass", "in a green field"),
    "beach": ("at the beach", "on the beach", "on a sandy beach"),
    "sea": ("on the sea", "at sea", "on the blue waves"),
    "night": ("at night", "under the night sky", "in the starry night"),
    "snow": ("in the snow", "on a snowy hill", "in a snowy field"),
    "desert": ("in the desert", "among sand dunes"),
    "room": ("in a room", "indoors", "inside a room"),
    "sunset": ("at sunset", "under an evening sky"),
}  # fmt: skip
ZH: dict[str, tuple[str, ...]] = {
    "small": ("小",), "big": ("大",),
    "plain": ("纯色",), "striped": ("条纹",), "spotted": ("圆点", "斑点"),
    "checked": ("格子", "方格"),
    "circle": ("圆形", "圆圈"), "square": ("方形", "正方形"), "triangle": ("三角形",),
    "star": ("星星",), "heart": ("爱心", "心形"), "moon": ("月亮",), "tree": ("树",),
    "house": ("房子",), "boat": ("船", "小船"), "fish": ("鱼",), "flower": ("花",),
    "face": ("笑脸", "脸"), "car": ("汽车", "车"), "cup": ("杯子",), "mushroom": ("蘑菇",),
    "umbrella": ("雨伞", "伞"), "balloon": ("气球",), "butterfly": ("蝴蝶",), "cat": ("猫",),
    "apple": ("苹果",),
    "red": ("红色", "红"), "orange": ("橙色",), "yellow": ("黄色", "黄"), "green": ("绿色", "绿"),
    "blue": ("蓝色", "蓝"), "purple": ("紫色",), "pink": ("粉色", "粉红色"),
    "brown": ("棕色", "褐色"), "white": ("白色", "白"), "black": ("黑色", "黑"),
    "left of": ("左边", "左侧"), "right of": ("右边", "右侧"), "above": ("上面", "上方"),
    "below": ("下面", "下方"),
    "meadow": ("草地上",), "beach": ("海滩上", "沙滩上"), "sea": ("海面上", "大海上"),
    "night": ("夜空下", "夜里"), "snow": ("雪地里", "雪中"), "desert": ("沙漠里",),
    "room": ("房间里", "屋子里"), "sunset": ("夕阳下", "日落时"),
}  # fmt: skip
COUNTERS = {
    "tree": "棵", "house": "座", "boat": "艘", "fish": "条", "flower": "朵", "face": "张",
    "car": "辆", "umbrella": "把", "butterfly": "只", "cat": "只", "star": "颗", "heart": "颗",
    "moon": "轮",
}  # fmt: skip
# Places by (row, column) of a ThingClaim.
EN_PLACES: dict[tuple[str | None, str | None], tuple[str, ...]] = {
    (None, "left"): ("on the left", "at the left"),
    (None, "right"): ("on the right", "at the right"),
    ("top", None): ("at the top",), ("bottom", None): ("at the bottom",),
    ("centre", "centre"): ("in the middle", "in the centre"),
    ("top", "left"): ("at the top left", "in the top left corner"),
    ("top", "right"): ("at the top right", "in the top right corner"),
    ("bottom", "left"): ("at the bottom left", "in the bottom left corner"),
    ("bottom", "right"): ("at the bottom right", "in the bottom right corner"),
    ("top", "centre"): ("at the top centre", "in the middle of the top"),
    ("bottom", "centre"): ("at the bottom centre", "in the middle of the bottom"),
    ("centre", "left"): ("at the middle left", "halfway up on the left"),
    ("centre", "right"): ("at the middle right", "halfway up on the right"),
}  # fmt: skip
ZH_PLACES: dict[tuple[str | None, str | None], tuple[str, ...]] = {
    (None, "left"): ("左边",), (None, "right"): ("右边",),
    ("top", None): ("上面",), ("bottom", None): ("下面",),
    ("centre", "centre"): ("中间", "正中"),
    ("top", "left"): ("左上角",), ("top", "right"): ("右上角",),
    ("bottom", "left"): ("左下角",), ("bottom", "right"): ("右下角",),
    ("top", "centre"): ("正上方",), ("bottom", "centre"): ("正下方",),
    ("centre", "left"): ("左侧中部",), ("centre", "right"): ("右侧中部",),
}  # fmt: skip


def caption(scene: Scene, seed: int, language: str = "en", complete: bool = True) -> Caption:
    """A caption of the scene; the same seed gives the same words."""
    rng = random.Random(seed)
    claims = plan(scene, rng, complete)
    return Caption(render_caption(claims, rng, language), language, claims)


def plan(
    scene: Scene,
    rng: random.Random,
    complete: bool = True,
    relation: tuple[int, str, int] | None = None,
) -> Claims:
    """What to claim of a scene; the first two things are stated in relation, others by their
    places.

    relation: of the scene's things i and j, for a complete caption to state; None: any.
    """
    things = rng.sample(scene.things, len(scene.things))
    if not complete:
        return _partial(scene, things, rng)
    if relation:
        pair = [scene.things[relation[0]], scene.things[relation[2]]]
        things = pair + [thing for thing in things if thing not in pair]
    thing_claims = [_described(thing) for thing in things]
    relations = ((0, relation[1], 1),) if relation else _relations(things, rng)
    placed = range(len(thing_claims)) if not relations else range(2, len(thing_claims))
    for i in placed:
        thing_claims[i] = _placed(thing_claims[i], things[i])
    return Claims(tuple(thing_claims), relations, scene.background)


def _partial(scene: Scene, things: list[Thing], rng: random.Random) -> Claims:
    """One or two of the things, each with some of its attributes; the background now and then."""
    things = things[: rng.choice((1, 1, 2))]
    relations = _relations(things, rng)
    thing_claims = []
    for thing in things:
        claim = _described(thing)
        for name in ("colour", "size", "texture"):
            if rng.random() < (0.25 if name == "colour" else 0.7):
                claim = replace(claim, **{name: None})
        thing_claims.append(
            _loosely(claim, thing, rng) if not relations and rng.random() < 0.4 else claim
        )
    return Claims(tuple(thing_claims), relations, scene.background if rng.random() < 0.4 else None)


def _described(thing: Thing) -> ThingClaim:
    return ThingClaim(thing.kind, thing.colour, thing.size, thing.texture)


def _placed(claim: ThingClaim, thing: Thing) -> ThingClaim:
    rows, columns = ("top", "centre", "bottom"), ("left", "centre", "right")
    return replace(claim, row=rows[thing.row], column=columns[thing.column])


def _loosely(claim: ThingClaim, thing: Thing, rng: random.Random) -> ThingClaim:
    """The thing's place, or only its column or row where that is an outer one."""
    placed = _placed(claim, thing)
    partly = [replace(placed, row=None)] if placed.column != "centre" else []
    partly += [replace(placed, column=None)] if placed.row != "centre" else []
    return rng.choice([placed, *partly])


def _relations(things: list[Thing], rng: random.Random) -> tuple[tuple[int, str, int], ...]:
    """How the first thing lies to the second; two different places always have a relation."""
    if len(things) < 2:
        return ()
    true = [relation for relation in RELATIONS if related(things[0], relation, things[1])]
    return ((0, rng.choice(true), 1),)


def render_caption(claims: Claims, rng: random.Random, language: str = "en") -> str:
    """Claims in words; `language` is one of LANGUAGES. What has no claim gets no word."""
    return {"en": _english, "zh": _chinese}[language](claims, rng)


def _word(phrases: dict[str, tuple[str, ...]], name: str, rng: random.Random) -> str:
    first, *rest = phrases.get(name, (name,))
    return first if not rest or rng.random() < 0.5 else rng.choice(rest)


def _english(claims: Claims, rng: random.Random) -> str:
    things = [_english_thing(claim, rng) for claim in claims.things]
    parts = _joined(claims, things, lambda i, r, j: f"{i} {_word(EN, r, rng)} {j}")
    said = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    if not claims.background:
        return said
    stage = _word(EN, claims.background, rng)
    return f"{stage}, {said}" if rng.random() < 0.3 else f"{said}{rng.choice((', ', ' '))}{stage}"


def _english_thing(claim: ThingClaim, rng: random.Random) -> str:
    kind = _word(EN, claim.kind or "thing", rng)
    pattern, after = claim.texture, ""
    if pattern in ("striped", "spotted", "checked") and rng.random() < 0.25:
        after = {"striped": " with stripes", "spotted": " with dots", "checked": " with checks"}[
            pattern
        ]
        pattern = None
    said = [claim.size, *rng.choice(([pattern, claim.colour], [claim.colour, pattern]))]
    noun = " ".join([*(_word(EN, name, rng) for name in said if name), kind])
    place = EN_PLACES.get((claim.row, claim.column))
    where = " " + rng.choice(place) if place else ""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}{after}{where}"


def _chinese(claims: Claims, rng: random.Random) -> str:
    things = [_chinese_thing(claim, rng) for claim in claims.things]
    parts = _joined(claims, things, lambda i, r, j: f"{i}在{j}的{_word(ZH, r, rng)}")
    said = "，".join(parts)
    if not claims.background:
        return said
    stage = _word(ZH, claims.background, rng)
    return f"{stage}，{said}" if rng.random() < 0.5 else f"{said}，在{stage}"


def _chinese_thing(claim: ThingClaim, rng: random.Random) -> str:
    kind = claim.kind or "thing"
    said = [_word(ZH, name, rng) for name in (claim.colour, claim.texture) if name]
    size = {"big": "大的", "small": "小的", None: ""}[claim.size]
    noun = size + "".join(said) + ("的" if said else "") + _word(ZH, kind, rng)
    noun = f"一{COUNTERS.get(kind, '个')}{noun}"
    place = ZH_PLACES.get((claim.row, claim.column))
    return f"{rng.choice(place)}有{noun}" if place else noun


def _joined(claims: Claims, things: list[str], pair) -> list[str]:
    """The things' phrases, those in a relation joined by `pair`."""
    if not claims.relations:
        return things
    ((i, relation, j),) = claims.relations
    others = [phrase for n, phrase in enumerate(things) if n not in (i, j)]
    return [pair(things[i], relation, things[j]), *others]
