"""The documents tell what the code does: every reason, setting, command and column is in them."""

from __future__ import annotations

import re

import duckdb
import numpy as np
import pandas
import pytest
import yaml
from conftest import ROOT, make_shard
from fake_encoder import FakeEncoder

from chiasm.index.build import build_index
from chiasm.jobs.cli.app import COMMANDS
from chiasm.jobs.config import Settings, keys, presets
from chiasm.pipeline.collection import Identity, arrow_schema, create_or_check, embeddings
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import ENCODERS
from chiasm.pipeline.images import REASONS
from chiasm.pipeline.shards import DROP_REASONS, NOTE_REASONS, list_shards
from chiasm.pipeline.storage import Folder

FORMATS = (ROOT / "docs/formats.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


@pytest.mark.parametrize("reasons", [DROP_REASONS, REASONS, NOTE_REASONS])
def test_every_reason_is_told_with_its_meaning(reasons):
    for reason, meaning in reasons.items():
        assert f"| `{reason}` | {meaning} |" in FORMATS


def test_every_parquet_column_is_told():
    for column in arrow_schema({"joint": 8}):
        assert f"`{column.name}`" in FORMATS


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_readme_names_every_command_encoder_and_preset(readme):
    text = readme.read_text()
    for name in COMMANDS:
        assert f"chiasm {name}" in text or f"make {name}" in text, name
    for family in ENCODERS.keys() - {"fake"}:
        assert f"`{family}" in text, family
    for preset in presets():
        assert f"`{preset}`" in text, preset


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_link_of_the_readme_leads_somewhere(readme):
    links = re.findall(r"\]\(([^)#]+)", readme.read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_python_of_the_readme_runs(readme, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Folder("photos.chiasm")
    create_or_check(folder, Identity.of(FakeEncoder()), "r1")
    (shard,) = list_shards([str(make_shard(tmp_path / "a.tar", 6))])
    embed_shard(shard, FakeEncoder(), folder, EmbedSettings(), run_id="r1")
    build_index("photos.chiasm")
    blocks = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    told, pictures = "", []
    for block in blocks:
        found: dict[str, object] = {}
        exec(block, found)
        told += capsys.readouterr().out
        pictures += [found["picture"]] if "picture" in found else []
    assert re.match(r"-?0\.\d{3} picture \d of 0 a-\w+/\d@\w{8}\n", told)
    assert pictures and all(picture[:2] == b"\xff\xd8" for picture in pictures)


def test_pandas_reads_the_vectors_and_duckdb_the_rest(tmp_path):
    folder = Folder(str(tmp_path / "c"))
    (shard,) = list_shards([str(make_shard(tmp_path / "a.tar", 6))])
    embed_shard(shard, FakeEncoder(), folder, EmbedSettings(), run_id="r1")
    expected = embeddings(folder)[0].vectors("image")[0]
    frame = pandas.read_parquet(tmp_path / "c" / "embeddings")
    np.testing.assert_array_equal(np.stack(frame["image"]), expected)
    path = tmp_path / "c/embeddings/*.parquet"
    rows = duckdb.sql(f"select key, caption, width from '{path}' order by key").fetchall()
    assert rows == [(f"0000000{n}", f"picture {n} of 0", 32) for n in range(6)]


def test_every_setting_is_told_with_its_default():
    told = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", OPERATIONS, re.MULTILINE))
    assert sorted(told) == sorted(keys(Settings))
    for key, default in told.items():
        value: object = Settings()
        for part in key.split("."):
            value = getattr(value, part)
        assert yaml.safe_load(default) == value, key


@pytest.mark.parametrize("page", ["docs/architecture.md"])
def test_every_module_a_page_names_exists(page):
    for name in re.findall(
        r"`((?:pipeline|index|jobs|tests)/[\w/]+\.py)`", (ROOT / page).read_text()
    ):
        assert (ROOT / name).exists(), name
