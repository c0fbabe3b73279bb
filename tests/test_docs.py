"""The pages say what the code does: every reason, setting, column, module and figure is in them,
and every link leads somewhere."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pandas
import pytest
import yaml
from conftest import ROOT, make_shard
from fake_encoder import FakeEncoder

from chiasm.index.ask import BATCH
from chiasm.jobs.config import Settings, compose, keys
from chiasm.pipeline.answers.files import SCHEMA, AnswersFooter
from chiasm.pipeline.arrays import ARRAY_REASONS
from chiasm.pipeline.collection import arrow_schema, embeddings
from chiasm.pipeline.editions import EmbedSettings
from chiasm.pipeline.embed import embed_shard
from chiasm.pipeline.encoders import ENCODE_NOTES, ENCODE_REASONS, explainer
from chiasm.pipeline.encoders.huggingface_generate import MAX_TOKENS
from chiasm.pipeline.images import REASONS
from chiasm.pipeline.model.config import DecoderConfig, ImageTokensConfig
from chiasm.pipeline.shards import DROP_REASONS, NOTE_REASONS, list_shards
from chiasm.pipeline.sounds import SOUND_REASONS
from chiasm.pipeline.storage import Folder
from chiasm.pipeline.training.joint.json_tasks import FIELDS, TEXTS
from chiasm.pipeline.training.joint.loop import DECODER_STEPS
from chiasm.pipeline.training.joint.settings import JointSettings
from chiasm.pipeline.training.pocket.settings import TrainSettings
from chiasm.pipeline.training.pocket.stages import stages_of

FORMATS = (ROOT / "docs/formats.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "pipeline/pocket/README.md",
]
MODULES = {
    str(path.relative_to(ROOT))
    for room in ("pipeline", "index", "jobs")
    for path in (ROOT / room).rglob("*.py")
    if path.name != "__init__.py"
}


@pytest.mark.parametrize(
    "reasons",
    [
        DROP_REASONS,
        REASONS,
        SOUND_REASONS,
        ARRAY_REASONS,
        ENCODE_REASONS,
        NOTE_REASONS,
        ENCODE_NOTES,
    ],
)
def test_every_reason_is_told_with_its_meaning(reasons):
    for reason, meaning in reasons.items():
        assert f"| `{reason}` | {meaning} |" in FORMATS


def test_every_parquet_column_is_told():
    for column in arrow_schema({"joint": 8}):
        assert f"`{column.name}`" in FORMATS


def test_every_column_of_answers_is_told_and_every_key_of_their_footer():
    answers = FORMATS.partition("### Answers about shards")[2].partition("\n### ")[0]
    names = [*SCHEMA.names, *(field.name for field in dataclasses.fields(AnswersFooter))]
    assert [name for name in names if f"`{name}`" not in answers] == []


def test_every_field_of_json_that_teaches_a_decoder_is_told():
    for field, task in FIELDS.items():
        texts = ", ".join(f"`{name}`" for name in TEXTS[task])
        (row,) = (line for line in FORMATS.splitlines() if line.startswith(f"| `{field}` |"))
        assert texts in row and f"| `{task}` |" in row


def test_every_method_of_explaining_is_told():
    for method in ("GRAD_ECLIP", "LEGRAD", "MAX_SIM", "HIRES_CAM", "ERASURE"):
        assert f"| `{getattr(explainer, method)}` |" in OPERATIONS


def test_the_defaults_of_answers_and_of_joint_training_are_told():
    joint, places = JointSettings(), DecoderConfig().context
    sizes = {name: compose(name, ()).batch.size for name in ("laptop", "one_gpu", "cluster")}
    assert sizes["one_gpu"] == sizes["cluster"]
    for default in (
        f"`hf:` {MAX_TOKENS}, `pocket` as many as its decoder has places ({places})",
        f"| {BATCH} inputs, fewer of large pictures (1 GiB) | {BATCH} pictures | `batch.size` "
        f"(`laptop` {sizes['laptop']}, other presets {sizes['cluster']}) |",
        f"| {joint.steps:,} steps of {joint.batch} pictures |",
        f"| {joint.frozen_steps} steps of {joint.frozen_batch} | {joint.fusion_steps:,} steps of "
        f"{joint.batch} |",
        f"{DECODER_STEPS:,} steps of {joint.decoder_batch} where json has",
    ):
        assert default in OPERATIONS
    assert f"more than {places - 1} tokens of the model's tokenizer" in FORMATS


def test_every_stage_of_pocket_is_told_and_what_its_codes_are():
    table = ARCHITECTURE.partition("## Stages of training")[2].partition("\n## ")[0]
    names = re.findall(r"^\| ([a-z ]+) \| (?:yes)", table, re.MULTILINE)
    assert names == [stage.name for stage in stages_of(TrainSettings())]
    codes, notes = (
        ImageTokensConfig(),
        " ".join((ROOT / "docs/design-notes.md").read_text().split()),
    )
    levels = " x ".join(map(str, codes.levels))
    cell = (
        f"each cell of {codes.stride} x {codes.stride} pixels is one of {codes.vocabulary:,} codes"
    )
    assert f"{cell} ({levels} levels)" in notes
    assert f"a picture of {codes.side} pixels is {codes.tokens} tokens" in notes


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
    documented = dict(re.findall(r"^\| `([\w.]+)` \| `([^`]*)` \|", OPERATIONS, re.MULTILINE))
    assert sorted(documented) == sorted(keys(Settings))
    for key, default in documented.items():
        value: object = Settings()
        for part in key.split("."):
            value = getattr(value, part)
        assert yaml.safe_load(default) == value, key


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_path_of_the_repository_that_a_page_names_exists(page):
    folders = "pipeline|index|jobs|tests|benchmarks|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_benchmark_that_a_page_names_exists(page):
    for name in re.findall(r"python -m benchmarks\.(\w+)", page.read_text()):
        assert name == "NAME" or (ROOT / f"benchmarks/{name}.py").exists(), name
    assert "python benchmarks/" not in page.read_text()


def test_architecture_names_each_module_once_or_its_folder():
    folders, modules, folder = [], [], ""
    for line in ARCHITECTURE.splitlines():
        if line.startswith("#"):
            heading = re.match(r"### `([\w/]+/)`", line)
            folder = heading[1] if heading else ""
            folders += [folder] if heading else []
        elif folder and line.startswith("|"):
            cell = line.split("|")[1]
            modules += [folder + name for name in re.findall(r"`([\w]+\.py)`", cell)]
    assert [name for name, count in Counter(modules + folders).items() if count > 1] == []
    assert sorted(set(modules) - MODULES) == [], "named, but not there"
    by_name = {"pipeline/", "index/", "jobs/"}  # whose modules are named one by one
    covered = {
        module
        for module in MODULES
        if module in modules or f"{Path(module).parent}/" in set(folders) - by_name
    }
    assert sorted(MODULES - covered) == [], "not named, and not in a folder that is"


def test_architecture_names_every_folder_and_every_dependency():
    rooms = {f"{Path(module).parent}/" for module in MODULES}
    assert sorted(room for room in rooms if f"### `{room}`" not in ARCHITECTURE) == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    table = ARCHITECTURE.partition("## Dependencies")[2].partition("\n## ")[0]
    for requirement in (requirement for group in groups for requirement in group):
        name = re.split(r"[\[>=<~! ]", requirement)[0]
        assert re.search(rf"\b{re.escape(name)}\b", table), name


def result(path: str) -> float:
    """A figure of benchmarks/results: `two_tower.json:joint:r1`."""
    name, *keys = path.split(":")
    value = json.loads((ROOT / "benchmarks/results" / name).read_text())
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


RESULTS = {  # the beginning of a claim in docs/results.md -> its figures in benchmarks/results
    "Embedding with CLIP ViT-B/32": ["throughput.json:encode:median:ours"],
    "ViT-B/32: the whole of": [
        "throughput.json:encode:ours / one caller", "throughput.json:encode:ours / callers"
    ],
    "The same against encoding alone": [
        f"throughput.json:others:SigLIP-B/16:ours / {limit}" for limit in ("one caller", "callers")
    ],
    "The same, MiniLM and MobileNetV2": [
        f"throughput.json:others:two-tower:ours / {limit}" for limit in ("one caller", "callers")
    ],
    "The same, `pocket`: decoding": [
        f"throughput.json:others:pocket:ours / {limit}" for limit in ("one caller", "callers")
    ],
    "Embedding with these": [
        f"throughput.json:others:{name}:median:ours"
        for name in ("SigLIP-B/16", "two-tower", "pocket")
    ],
    "clip-retrieval 2.45.0 on the same": ["throughput.json:peer:median:peer"],
    "chiasm against clip-retrieval": ["throughput.json:peer:ours / peer"],
    "The same, against the decode function": ["throughput.json:decode:ours / bare"],
    "Processor time of that beside decoding": [
        "throughput.json:overhead:milliseconds of processor time a pair"
    ],
    "All vectors of 100,000 rows": ["parquet_reading.json:MB_per_second:ours"],
    "One row of them by shard and key": [
        "parquet_reading.json:row_by_key_ms:median", "parquet_reading.json:row_by_key_ms:99 of 100"
    ],
    "All processes above the loaded worker": ["memory.json:free:growth:0:MB"],
    "One shard of 50,000 samples": ["memory.json:free:growth:1:MB"],
    "2,066 hostile picture files": ["hostile.json:of them opened by Pillow"],
    "Families at all doors": [
        f"families.json:count:{name}" for name in ("families", "architectures", "refused", "missed")
    ],
    "Vectors and scores of all families": ["families.json:worst:millionths"],
    "What goes into their towers": ["families.json:worst:inputs"],
    "From the bytes of files to vectors": ["families.json:worst:cosine"],
    "Text to image, English: R@1": ["pocket_recall.json:mean:text_to_image:en:r1"],
    "Image to text, Chinese: R@1": ["pocket_recall.json:mean:image_to_text:zh:r1"],
    "Hard twins, English": [
        "pocket_joint.json:hard_twins:en:vectors_r1", "pocket_joint.json:hard_twins:en:matching_r1"
    ],
    "Is this caption true": ["pocket_joint.json:matching_accuracy:all"],
    "The same, joint vector": [
        "pocket_joint.json:joint:fusion:r1", "pocket_joint.json:joint:fusion:r10"
    ],
    "Picture vector: R@1": [
        "two_tower.json:image:r1", "two_tower.json:image:r5", "two_tower.json:image:r10"
    ],
    "Joint vector (the even mean": [
        "two_tower.json:joint:r1", "two_tower.json:joint:r5", "two_tower.json:joint:r10"
    ],
    "mean: R@1; R@10": ["two_tower_fusions.json:mean:r1", "two_tower_fusions.json:mean:r10"],
    "Late interaction by the tokens of `pocket`": [
        f"late_interaction.json:pocket:{figure}"
        for figure in ("by_tokens:recall", "by_tokens:cpu_ms", "exact:cpu_ms")
    ],
    "Late interaction by those of a ColPali": [
        f"late_interaction.json:colpali:{figure}"
        for figure in ("by_tokens:recall", "by_tokens:cpu_ms", "exact:cpu_ms")
    ],
    "One vector a row, MUVERA's": [
        "late_interaction.json:pocket:single:recall", "late_interaction.json:pocket:single:cpu_ms"
    ],
    "Learned without the third doubted most: R@1 of the even mean": [
        f"filtering.json:seeds:{seed}:filtered:mean:r1" for seed in range(3)
    ],
}  # fmt: skip


@pytest.mark.parametrize("claim", RESULTS)
def test_a_figure_is_that_of_its_benchmark(claim):
    rows = [line for line in (ROOT / "docs/results.md").read_text().splitlines()
            if line.startswith(f"| {claim}")]  # fmt: skip
    assert len(rows) == 1
    value = re.sub(r"\(.*?\)", "", rows[0].split("|")[2])
    printed = re.findall(r"\d+(?:\.\d+)?", value)
    for text, path in zip(printed, RESULTS[claim], strict=True):
        digits = len(text.partition(".")[2])
        assert float(text) == pytest.approx(result(path), abs=0.51 * 10**-digits), path


@pytest.mark.parametrize(
    ("page", "benchmark", "count"),
    [
        ("pipeline/pocket/README.md", "benchmarks.pocket_card", 5),
        ("docs/results.md", "benchmarks.family_tables", 2),
    ],
)
def test_a_page_has_the_tables_of_its_benchmarks(page, benchmark, count):
    printed = subprocess.run(
        [sys.executable, "-m", benchmark], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tables = printed.stdout.strip().split("\n\n")
    assert len(tables) >= count
    assert [table for table in tables if table not in (ROOT / page).read_text()] == []


def test_the_figures_of_the_readme_are_in_the_results():
    page = (ROOT / "docs/results.md").read_text()
    for name in "README.md", "README.zh-CN.md":
        readme = (ROOT / name).read_text()
        table = readme[readme.index("docs/results.md)") :].partition("\n## ")[0]
        rows = [line.split("|") for line in table.splitlines() if line.startswith("|")][2:]
        assert 1 <= len(rows) <= 3
        for row in rows:
            for figure in row[2].split(";"):
                assert re.search(rf"(?<![\d.]){re.escape(figure.strip())}(?![\d.])", page), figure
