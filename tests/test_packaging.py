"""What is built, installed and imported is `chiasm` alone, wherever it is started."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

import pytest
from conftest import ROOT, make_shard
from source_tree import ROOMS, copy_sources

CAN_BUILD = (
    util.find_spec("pip") is not None
    and util.find_spec("setuptools") is not None
    and int(metadata.version("setuptools").split(".")[0]) >= 77
)
builds = pytest.mark.skipif(
    not CAN_BUILD, reason="needs pip and setuptools 77 or newer: pip install pip -e '.[dev]'"
)
TRACE = """
import os, sys
from collections import Counter
names = [name for name in sys.modules if name.split(".")[0] in {"pipeline", "index", "jobs"}]
assert names == [], names
files = Counter(
    os.path.realpath(module.__file__)
    for name, module in list(sys.modules.items())
    if name.split(".")[0] == "chiasm" and getattr(module, "__file__", None)
)
assert len(files) > 40 and max(files.values()) == 1, files.most_common(3)
"""


def run(
    *command: object, cwd: Path, path: Sequence[Path] = (), check: bool = True
) -> subprocess.CompletedProcess[str]:
    """A program that knows of no chiasm but what lies in `path`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    ran = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert not check or ran.returncode == 0, ran.stdout + ran.stderr
    return ran


def pip(*arguments: object, cwd: Path) -> None:
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-build-isolation")
    run(sys.executable, "-m", "pip", *arguments, "--no-deps", *quiet, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", copy_sources(folder / "clone"), "-w", folder, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder into which the wheel was installed."""
    target = tmp_path_factory.mktemp("installed") / "site"
    pip("install", wheel, "--target", target, cwd=target.parent)
    return target


OURS = ("index.py", "pipeline/__init__.py", "jobs/__init__.py")
LIBRARIES = ("safetensors.py", "random.py", "typing.py", "logging.py", "yaml.py")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A person's folder, whose files bear names of ours and of a library, and must not be run."""
    for name in (*OURS, *LIBRARIES):
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"raise AssertionError('{name} of the current folder was imported')\n")
    return tmp_path / "mine"


def files_of_the_rooms() -> set[str]:
    """What a wheel has to hold: every file of ours, by its name in the wheel."""
    ours = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    names = {f"chiasm/{path.relative_to(ROOT)}" for path in ours if path.suffix != ".pyc"}
    return names | {f"chiasm/{name}" for name in ("__init__.py", "__main__.py", "py.typed")}


@builds
def test_a_wheel_holds_every_file_of_ours_and_nothing_beside_chiasm(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    code = {name for name in names if ".dist-info/" not in name}
    assert code == files_of_the_rooms()
    assert "chiasm/pipeline/pocket/model.safetensors" in code
    assert "chiasm/jobs/presets/laptop.yaml" in code


@builds
def test_a_source_distribution_holds_the_same_and_installs(tmp_path):
    clone = copy_sources(tmp_path / "clone")
    build = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run(sys.executable, "-c", build, cwd=clone)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isfile() or member.islnk() or member.issym()]
    assert not any(member.issym() or member.islnk() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    assert {name for name in names if name.startswith("chiasm/")} == files_of_the_rooms()
    assert not any(name.startswith("tests/") for name in names)
    pip("install", archive, "--target", tmp_path / "site", cwd=tmp_path)
    ran = run(tmp_path / "site/bin/chiasm", "--version", cwd=tmp_path, path=[tmp_path / "site"])
    assert ran.stdout == f"chiasm {metadata.version('chiasm')}\n"


@builds
def test_the_wheel_is_what_is_imported_beside_files_of_the_same_names(installed, folder):
    for name in LIBRARIES:  # of those a person's own program takes the ones beside it
        (folder / name).unlink()
    statement = "import chiasm, chiasm.index, chiasm.jobs.config; print(chiasm.__file__)"
    ran = run(sys.executable, "-c", statement, cwd=folder, path=[installed])
    assert ran.stdout == f"{installed / 'chiasm/__init__.py'}\n"


@builds
def test_the_command_runs_beside_files_of_the_same_names(installed, folder):
    script = run(installed / "bin/chiasm", "--version", cwd=folder, path=[installed])
    module = run(sys.executable, "-m", "chiasm", "--version", cwd=folder, path=[installed])
    assert script.stdout == module.stdout == f"chiasm {metadata.version('chiasm')}\n"


@builds
@pytest.mark.parametrize("started", ["chiasm", "python -m chiasm"])
def test_workers_import_the_wheel_beside_files_of_the_same_names(installed, folder, started):
    script = [installed / "bin/chiasm"]
    command = script if started == "chiasm" else [sys.executable, "-m", "chiasm"]
    make_shard(folder / "a.tar", 3)
    run(*command, "embed", "a.tar", "--to", "a.chiasm", cwd=folder, path=[installed])
    run(*command, "index", "build", "a.chiasm", cwd=folder, path=[installed])
    search = ("search", "a.chiasm", "a picture", "--json")
    ran = run(*command, *search, cwd=folder, path=[installed])
    assert len(json.loads(ran.stdout)["results"]) == 3


def test_no_module_of_ours_loads_under_two_names(tmp_path):
    make_shard(tmp_path / "a.tar", 3)
    statement = f"""
from chiasm.index import open_collection
from chiasm.index.build import build_index
from chiasm.jobs.config import compose
from chiasm.jobs.embed_shards import EmbedRequest, embed_shards
from chiasm.pipeline.shards import list_shards

embed_shards(EmbedRequest(list_shards(["a.tar"]), "a.chiasm", compose()))
build_index("a.chiasm")
assert len(open_collection("a.chiasm").search("a picture")) == 3
{TRACE}"""
    run(sys.executable, "-c", statement, cwd=tmp_path, path=[ROOT])


@builds
def test_an_editable_install_is_imported_from_the_folder_that_holds_the_clone(tmp_path):
    clone = copy_sources(tmp_path / "chiasm")
    site = tmp_path / "site"
    pip("install", "--editable", clone, "--target", site, cwd=tmp_path)
    # -S: without this interpreter's own packages, in which chiasm may be installed too
    statement = f"import site; site.addsitedir({str(site)!r}); import chiasm.pipeline.errors as e"
    ran = run(sys.executable, "-S", "-c", f"{statement}; print(e.__file__)", cwd=tmp_path)
    assert ran.stdout == f"{clone / 'chiasm/pipeline/errors.py'}\n"


def test_a_packed_job_holds_our_files_and_no_links(tmp_path):
    clone = copy_sources(tmp_path / "clone")
    assert (clone / "chiasm/pipeline").is_symlink()
    statement = """
import sys
from pathlib import Path
from chiasm.jobs.cluster.submit import EXCLUDES, pack
pack(Path(sys.argv[1]), [], EXCLUDES)"""
    (tmp_path / "packed").mkdir()
    run(sys.executable, "-c", statement, tmp_path / "packed", cwd=tmp_path, path=[clone])
    packed = [path for path in (tmp_path / "packed").rglob("*") if not path.is_dir()]
    assert not any(path.is_symlink() for path in packed)
    names = {str(path.relative_to(tmp_path / "packed")) for path in packed}
    assert names == files_of_the_rooms()


@pytest.mark.skipif(util.find_spec("ruff") is None, reason="needs ruff: pip install -e '.[dev]'")
def test_each_file_is_linted_once():
    ran = run(sys.executable, "-m", "ruff", "check", "--show-files", ".", cwd=ROOT)
    files = [Path(line).resolve() for line in ran.stdout.splitlines()]
    assert len(files) == len(set(files))
    ours = {path for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert ours <= set(files)


def test_every_dependency_has_an_exact_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = project["dependencies"] + extras["cpu"] + extras["dev"]
    requirements += extras["openclip"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==\S+", pin) for pin in pins)
    assert set(map(distribution, requirements)) <= set(map(distribution, pins))


def distribution(requirement: str) -> str:
    """The name in a requirement, as package indexes compare names."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()
