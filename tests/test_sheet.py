"""Contact sheets: the right pictures in the right places, in any script, whatever is missing."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from chiasm.index.results import Answer, Query, Result
from chiasm.index.sheet import contact_sheet, typeface, write_sheet
from chiasm.index.sheet.sheet import GAP, TILE
from chiasm.index.sheet.typeface import Typeface
from chiasm.pipeline.errors import StorageError, UsageError
from chiasm.pipeline.records import Place
from chiasm.pipeline.shards import write_shard
from chiasm.pipeline.storage import canonical_url

COLOURS = ["red", "green", "blue", "orange", "purple", "teal", "black"]


@pytest.fixture
def answer(tmp_path) -> Answer:
    """Seven hits, each a picture of one colour and of its own shape."""
    pictures = []
    for number, colour in enumerate(COLOURS):
        file = io.BytesIO()
        Image.new("RGB", (300, 300 + 40 * number), colour).save(file, "PNG")
        pictures.append(file.getvalue())
    shard = tmp_path / "a.tar"
    write_shard(shard, [{"__key__": f"k{n}", "png": one} for n, one in enumerate(pictures)])
    with tarfile.open(shard) as tar:
        offsets = {member.name: member.offset_data for member in tar}
    results = tuple(
        Result(
            id=f"a/{n}@0",
            score=1 - n / 10,
            rank=n + 1,
            key=f"k{n}",
            shard="a",
            caption=f"a {COLOURS[n]} picture with a caption that takes more than a line",
            url=canonical_url(str(shard)),
            place=Place(f"k{n}.png", offsets[f"k{n}.png"], len(one)),
            sha256=hashlib.sha256(one).hexdigest(),
        )
        for n, one in enumerate(pictures)
    )
    return Answer(Query("a colour"), results, {"load": 1.0, "search": 0.005})


def test_each_hit_lies_in_its_place(answer, tmp_path):
    write_sheet([answer], tmp_path / "out" / "sheet.png")
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width == GAP + 5 * (TILE + GAP)
        sheet.load()
        for number, colour in enumerate(COLOURS):
            x = GAP + number % 5 * (TILE + GAP) + TILE // 2
            column = {sheet.getpixel((x, y)) for y in range(sheet.height)}
            assert Image.new("RGB", (1, 1), colour).getpixel((0, 0)) in column
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sheet.png"]


def test_answers_lie_below_each_other(answer):
    alone = contact_sheet([answer])
    twice = contact_sheet([answer, replace(answer, query=Query(image=answer[2].picture()))])
    assert alone.height < twice.height and alone.width == twice.width
    assert twice.crop((0, 0, alone.width, alone.height)).tobytes() == alone.tobytes()
    blue = (0, 0, 255)
    beside_the_title = twice.getpixel((GAP + TILE // 4, alone.height + GAP + TILE // 4))
    assert beside_the_title == blue, "the query's own picture"


def test_what_cannot_be_read_leaves_a_tile_that_says_why(answer):
    broken = replace(
        answer,
        results=(
            replace(answer[0], url="file:///nowhere/b.tar"),
            replace(answer[1], place=None, caption="only words"),
            replace(answer[2], sha256="0" * 64),
            replace(answer[3], caption=None),
        ),
    )
    sheet = contact_sheet([broken])
    whole = contact_sheet([replace(broken, results=answer.results[:4])])
    assert sheet.size == whole.size and sheet.tobytes() != whole.tobytes()
    orange = Image.new("RGB", (1, 1), "orange").getpixel((0, 0))
    assert sheet.getpixel((GAP + 3 * (TILE + GAP) + TILE // 2, 250)) == orange


def test_no_hits_and_no_answers_are_sheets_too(answer):
    assert contact_sheet([replace(answer, results=())]).height > 0
    assert contact_sheet([]).size[1] > 0
    with pytest.raises(UsageError, match="found No such file"):
        contact_sheet([replace(answer, query=Query(image="/nowhere.png"))])


def test_a_target_that_cannot_be_written_is_told(answer, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a file where a folder should be"):
        write_sheet([answer], tmp_path / "file" / "in" / "sheet.png")


LINES = [
    "a red boat under a yellow moon beside three green trees",
    "月光下的一条红色小船，旁边有三棵绿色的树和一座房子。",
    "one 两 three 四 five 六 seven 八 nine 十",
    "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen",
    "  spaces \t and\nlines  ",
    "",
]


@pytest.fixture
def every_font_has_everything(monkeypatch):
    monkeypatch.setattr(typeface, "_has", lambda font, one: one.isprintable())


@pytest.mark.parametrize("text", LINES)
@pytest.mark.parametrize("width", [60, 150, 2000])
def test_lines_keep_to_their_width_and_lose_nothing_that_fits(
    text, width, every_font_has_everything
):
    face = Typeface(15)
    lines = face.wrap(text, width, 3)
    assert len(lines) <= 3 and all(face.width(line) <= width for line in lines)
    assert all(line == line.strip() != "" for line in lines)
    if not any("…" in line for line in lines):
        assert "".join(lines).replace(" ", "") == "".join(text.split())
    if width == 2000:
        assert lines == ([" ".join(text.split())] if text.strip() else [])


def test_letters_that_no_font_has_are_left_out_and_remembered(monkeypatch):
    monkeypatch.setattr(typeface, "_has", lambda font, one: one.isascii())
    face = Typeface(15)
    assert face.wrap("月光 moon 下 boat", 500, 2) == ["moon boat"]
    assert face.missing == set("月光下")
    assert face.wrap("月光下", 500, 2) == []


def test_a_font_knows_what_it_lacks():
    latin = ImageFont.load_default(15)
    assert typeface._has(latin, "a") and not typeface._has(latin, "月")
    assert not typeface._has(latin, "\n")


def test_a_chinese_font_is_found_by_its_name(tmp_path, monkeypatch):
    """Any font under such a name will do to see it found; this system may have none."""
    path = ImageFont.truetype("DejaVuSans.ttf", 15).path if _has_dejavu() else None
    if path is None:
        pytest.skip("no font file on this system to stand in")
    fonts = tmp_path / "fonts"
    fonts.mkdir()
    (fonts / "wqy-microhei.ttc").write_bytes(Path(path).read_bytes())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(typeface, "CJK", [("wqy-microhei.ttc", 0)])
    typeface._fonts.cache_clear()
    found = typeface._fonts(17, False)
    typeface._fonts.cache_clear()
    assert len(found) == 2 and Path(str(found[1].path)).name == "wqy-microhei.ttc"


def _has_dejavu() -> bool:
    try:
        ImageFont.truetype("DejaVuSans.ttf", 15)
    except OSError:
        return False
    return True
