"""Contact sheets: the right pictures in the right places, text in any script, and their files."""

from __future__ import annotations

import hashlib
import io
import resource
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageFont

from chiasm.index import Answer, Hit, Query, Result
from chiasm.index.results import CatalogRow
from chiasm.index.sheet import contact_sheet, fonts, sheet, typeface, write_sheet
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
    write_shard(shard, [{"__key__": f"k{n}", "png": data} for n, data in enumerate(pictures)])
    with tarfile.open(shard) as tar:
        offsets = {member.name: member.offset_data for member in tar}
    results = tuple(
        Result(
            rank=n + 1,
            hit=Hit(n, {"search": 1 - n / 10}),
            row=CatalogRow(
                id=f"a/{n}@0",
                key=f"k{n}",
                shard="a",
                url=canonical_url(str(shard)),
                caption=f"a {COLOURS[n]} picture with a caption that takes more than a line",
                captions=(),
                meta={},
                width=None,
                height=None,
                place=Place(f"k{n}.png", offsets[f"k{n}.png"], len(data)),
                sha256=hashlib.sha256(data).hexdigest(),
            ),
        )
        for n, data in enumerate(pictures)
    )
    return Answer(Query("a colour"), results, {"load": 1.0, "search": 0.005})


def with_row(result: Result, **fields: object) -> Result:
    return replace(result, row=replace(result.row, **fields))


def test_each_result_is_drawn_in_its_place(answer, tmp_path):
    write_sheet([answer], tmp_path / "out" / "sheet.png")
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width == GAP + 5 * (TILE + GAP)
        sheet.load()
        for number, colour in enumerate(COLOURS):
            x = GAP + number % 5 * (TILE + GAP) + TILE // 2
            column = {sheet.getpixel((x, y)) for y in range(sheet.height)}
            assert Image.new("RGB", (1, 1), colour).getpixel((0, 0)) in column
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["sheet.png"]


def test_answers_are_drawn_below_each_other(answer):
    alone = contact_sheet([answer])
    twice = contact_sheet([answer, replace(answer, query=Query(image=answer[2].picture()))])
    assert alone.height < twice.height and alone.width == twice.width
    assert twice.crop((0, 0, alone.width, alone.height)).tobytes() == alone.tobytes()
    blue = (0, 0, 255)
    beside_the_title = twice.getpixel((GAP + TILE // 4, alone.height + GAP + TILE // 4))
    assert beside_the_title == blue, "the query's own picture"


def test_a_picture_that_cannot_be_read_leaves_a_tile_that_says_why(answer):
    broken = replace(
        answer,
        results=(
            with_row(answer[0], url="file:///nowhere/b.tar"),
            with_row(answer[1], place=None, caption="only words"),
            with_row(answer[2], sha256="0" * 64),
            with_row(answer[3], caption=None),
        ),
    )
    sheet = contact_sheet([broken])
    whole = contact_sheet([replace(broken, results=answer.results[:4])])
    assert sheet.size == whole.size and sheet.tobytes() != whole.tobytes()
    orange = Image.new("RGB", (1, 1), "orange").getpixel((0, 0))
    assert sheet.getpixel((GAP + 3 * (TILE + GAP) + TILE // 2, 250)) == orange


def test_a_sheet_without_results_or_answers_can_be_drawn(answer):
    assert contact_sheet([replace(answer, results=())]).height > 0
    assert contact_sheet([]).size[1] > 0
    with pytest.raises(UsageError, match="found No such file"):
        contact_sheet([replace(answer, query=Query(image="/nowhere.png"))])


def test_a_target_that_cannot_be_written_is_an_error(answer, tmp_path):
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
def every_font_has_every_character(monkeypatch):
    monkeypatch.setattr(typeface, "has_character", lambda font, character: character.isprintable())


@pytest.mark.parametrize("text", LINES)
@pytest.mark.parametrize("width", [60, 150, 2000])
def test_wrapped_lines_fit_their_width_and_keep_all_that_fits(
    text, width, every_font_has_every_character
):
    face = Typeface(15)
    lines = face.wrap(text, width, 3)
    assert len(lines) <= 3 and all(face.width(line) <= width for line in lines)
    assert all(line == line.strip() != "" for line in lines)
    if not any("…" in line for line in lines):
        assert "".join(lines).replace(" ", "") == "".join(text.split())
    if width == 2000:
        assert lines == ([" ".join(text.split())] if text.strip() else [])


@pytest.fixture
def no_font_but_latin(monkeypatch):
    monkeypatch.setattr(typeface, "has_character", lambda font, character: character.isascii())
    monkeypatch.setattr(typeface, "find_font", lambda character, size: None)


def test_characters_that_no_font_has_are_left_out_and_remembered(no_font_but_latin):
    face = Typeface(15)
    assert face.wrap("月光 moon 下 boat", 500, 2) == ["moon boat"]
    assert face.missing == set("月光下")
    assert face.wrap("月光下", 500, 2) == []


def test_a_font_knows_what_it_lacks():
    latin = ImageFont.load_default(15)
    assert fonts.has_character(latin, "a") and not fonts.has_character(latin, "月")
    assert not fonts.has_character(latin, "\n")
    assert not fonts.has_character(latin, "\u0e31"), "a Thai vowel above its consonant"


@pytest.fixture
def font_file(tmp_path) -> Path:
    """A font file that stands in for any: this system may have no Chinese one."""
    path = tmp_path / "fonts" / "some.ttf"
    path.parent.mkdir()
    try:
        path.write_bytes(Path(ImageFont.truetype("DejaVuSans.ttf", 15).path).read_bytes())
    except OSError:
        pytest.skip("no font file on this system")
    return path


@pytest.fixture
def no_font_known_yet(monkeypatch):
    """Every font that is opened has every character; none has been looked for."""
    monkeypatch.setattr(fonts, "has_character", lambda font, character: True)
    monkeypatch.setattr(fonts, "_found", {})
    monkeypatch.setattr(fonts, "FOLDERS", [])
    monkeypatch.setenv("PATH", "")


def test_a_chinese_font_is_found_by_its_usual_name(font_file, tmp_path, monkeypatch):
    font_file.rename(font_file.with_name("wqy-microhei.ttc"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setattr(typeface, "CJK", [("wqy-microhei.ttc", 0)])
    for function in (typeface._fonts, fonts.open_font):
        function.cache_clear()
    found = typeface._fonts(17, False)
    for function in (typeface._fonts, fonts.open_font):
        function.cache_clear()
    assert len(found) == 2 and Path(str(found[1].path)).name == "wqy-microhei.ttc"


def test_a_font_is_found_by_fontconfig(font_file, tmp_path, monkeypatch, no_font_known_yet):
    program = tmp_path / "fc-list"
    program.write_text(f'#!/bin/sh\n[ "$3" = ":charset=6708" ] && printf "{font_file}\\t0\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = fonts.find_font("月", 15)
    assert found is not None and str(found.path) == str(font_file)


def test_a_font_is_found_in_the_usual_folders(font_file, monkeypatch, no_font_known_yet):
    assert fonts.find_font("月", 15) is None
    monkeypatch.setattr(fonts, "_found", {})
    monkeypatch.setattr(fonts, "FOLDERS", [str(font_file.parent)])
    found = fonts.find_font("月", 15)
    assert found is not None and str(found.path) == str(font_file)


def test_a_script_without_a_font_is_looked_for_once(monkeypatch, no_font_known_yet):
    searches: list[str] = []
    monkeypatch.setattr(fonts, "_search", searches.append)
    assert [fonts.find_font(character, 15) for character in "月光한ก月"] == [None] * 5
    assert searches == ["月", "한", "ก"]


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """The lines of text that a sheet draws, in their order."""
    texts: list[str] = []
    draw = Typeface.draw

    def record(self, canvas, at, text, fill):
        texts.append(text)
        draw(self, canvas, at, text, fill)

    monkeypatch.setattr(Typeface, "draw", record)
    return texts


def test_the_title_is_drawn_in_a_font_that_was_found(answer, drawn, monkeypatch):
    monkeypatch.setattr(typeface, "has_character", lambda font, character: True)
    contact_sheet([replace(answer, query=Query("月光 moon"))])
    assert drawn[0] == "月光 moon"


def test_without_a_font_the_title_is_drawn_transliterated(answer, drawn, no_font_but_latin):
    contact_sheet([replace(answer, query=Query("夜空 moon é"))])
    assert drawn[0] == "YeKong moon e" and drawn[-1].startswith("No font here has some")


def test_a_character_without_a_transliteration_is_drawn_as_an_escape(no_font_but_latin):
    assert Typeface(15).transliterated("月 \ue000") == r"Yue \ue000", "private use"


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")],
)
def test_the_suffix_chooses_the_format(answer, tmp_path, name, form):
    write_sheet([answer], tmp_path / name)
    with Image.open(tmp_path / name) as written:
        written.load()
        assert written.format == form and written.size == contact_sheet([answer]).size
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", name}


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.txt"])
def test_another_suffix_is_refused_with_those_that_can_be_written(answer, tmp_path, name):
    with pytest.raises(UsageError, match=r"ends in \.png, \.jpg, \.jpeg, \.webp, found"):
        write_sheet([answer], tmp_path / name)
    assert not (tmp_path / name).exists()


def test_another_suffix_is_refused_before_anything_is_searched(chiasm, tmp_path):
    done = chiasm("search", tmp_path / "no collection", "a boat", "--sheet", "hits.gif")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "chiasm: sheet hits.gif: expected a name that ends in .png, .jpg, .jpeg, .webp, "
        "found .gif\n"
    )


def test_a_sheet_too_large_for_its_format_is_refused(answer, tmp_path, monkeypatch):
    monkeypatch.setitem(sheet.MAX_SIDE, "WEBP", 1000)
    with pytest.raises(UsageError, match="at most 1,000 pixels a side in WEBP, found 1,344 x"):
        write_sheet([answer], tmp_path / "a.webp")


def test_a_sheet_that_cannot_be_written_leaves_the_one_before(answer, tmp_path):
    path = tmp_path / "out" / "sheet.png"
    write_sheet([answer], path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(StorageError, match="the limit of a file's size reached"):
            write_sheet([answer, answer], path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_results_that_were_not_reranked_say_by_what_they_were_scored(answer, monkeypatch):
    first = replace(answer[0], hit=answer[0].hit.scored("match", 5.25, 0))
    reranked = replace(
        answer, query=Query("a", rerank="match:1"), results=(first, *answer.results[1:])
    )
    drawn: list[str] = []
    monkeypatch.setattr(Typeface, "draw", lambda self, canvas, at, text, fill: drawn.append(text))
    contact_sheet([reranked])
    assert "5.250" in drawn and "0.900 (search)" in drawn and "0.900" not in drawn
    assert "7 results by image, 5 ms, loading 1.0 s, reranked by match:1" in drawn
