"""The documents tell what the code does: every reason, setting, command and column is in them."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

from jobs.cli import COMMANDS
from jobs.config import presets
from pipeline.encoders import FAMILIES
from pipeline.images import REASONS
from pipeline.parquet import arrow_schema
from pipeline.samples import DROP_REASONS, NOTE_REASONS

FORMATS = (ROOT / "docs/formats.md").read_text()
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


@pytest.mark.parametrize("reasons", [DROP_REASONS, REASONS, NOTE_REASONS])
def test_every_reason_is_told_with_its_meaning(reasons):
    for reason, meaning in reasons.items():
        assert f"| `{reason}` | {meaning} |" in FORMATS


def test_every_parquet_column_is_told():
    for column in arrow_schema(8):
        assert f"`{column.name}`" in FORMATS


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_readme_names_every_command_encoder_and_preset(readme):
    text = readme.read_text()
    for name in COMMANDS:
        assert f"chiasm {name}" in text or f"make {name}" in text, name
    for family in FAMILIES:
        assert f"`{family}" in text, family
    for preset in presets():
        assert f"`{preset}`" in text, preset


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_every_link_of_the_readme_leads_somewhere(readme):
    links = re.findall(r"\]\(([^)#]+)", readme.read_text())
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


@pytest.mark.parametrize("page", ["docs/architecture.md"])
def test_every_module_a_page_names_exists(page):
    for name in re.findall(
        r"`((?:pipeline|index|jobs|tests)/[\w/]+\.py)`", (ROOT / page).read_text()
    ):
        assert (ROOT / name).exists(), name
