"""The examples run as they stand, outside the repository, and find what they look for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment

EXAMPLES = ROOT / "examples"


def run_example(name: str, *arguments: object, cwd: Path) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)],
        cwd=cwd,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where examples/embed.py has run."""
    folder = tmp_path_factory.mktemp("examples")
    assert run_example("embed.py", cwd=folder) == "scenes.chiasm: 40 rows of 40 samples\n"
    return folder


def captions_under(title: str, output: str) -> list[str]:
    """The captions that are listed under a title, best first."""
    (block,) = re.findall(rf"^{re.escape(title)}\n((?:  .*\n)+)", output, flags=re.MULTILINE)
    return [re.sub(r"  \(.*|^  \d+\. [-.\d]+  ", "", line) for line in block.splitlines()]


def test_embedding_again_skips_what_is_done(folder):
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert len(files) == 1
    assert run_example("embed.py", cwd=folder) == "scenes.chiasm: 40 rows of 40 samples\n"
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_shards_of_ones_own_are_embedded(tmp_path, folder):
    shard = folder / "scenes-00000.tar"
    output = run_example("embed.py", shard, "--to", tmp_path / "mine", cwd=tmp_path)
    assert output == f"{tmp_path / 'mine'}: 40 rows of 40 samples\n"


def test_a_collection_is_searched_by_words_by_a_picture_and_by_both(folder):
    output = run_example("search.py", cwd=folder)
    found = captions_under("pictures for 'a flower in a meadow':", output)
    assert len(found) == 3 and "flower" in found[0]
    assert captions_under("pictures like the first:", output)[0] == found[0]
    assert captions_under("captions for the first:", output)[0] == found[0]
    assert len(captions_under("like the first, at night:", output)) == 3


def test_an_encoder_of_ones_own_embeds_and_finds_waves(tmp_path):
    output = run_example("your_own_encoder.py", cwd=tmp_path)
    assert output.startswith("16 rows of 16 samples\n")
    assert captions_under("waves for words:", output)[0] == "a fast wave"
    assert "\nthe first is loudest at 64 Hz\n" in output
    words = captions_under("words for a wave that is slow and quick:", output)
    assert set(words[:2]) == {"a slow wave on a quick one", "a quick wave on a slow one"}


def test_every_example_is_run_by_a_test():
    named = set(re.findall(r'"(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} <= named
