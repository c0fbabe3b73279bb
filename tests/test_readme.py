"""README.md and README.zh-CN.md: their commands and their Python run, both say the same, and every
sentence is short."""

from __future__ import annotations

import os
import random
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_towers
from commands import preload, run_command
from conftest import ROOT, environment, make_shard
from random_models import siglip_folder

from chiasm.jobs.cli.app import COMMANDS
from chiasm.jobs.preset_files import presets
from chiasm.pipeline.encoders import ENCODERS

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
READMES = [ENGLISH, CHINESE]
MAX_WORDS = 25
MAX_CHARACTERS = 70  # of a Chinese sentence, code left out

REDUCED = {  # beginning of a command -> what is added, so that it takes seconds
    "chiasm train two-tower": "--device cpu --precision float32 --steps 5",
}
REPLACED = {"make demo": "chiasm demo --samples 60 --to demo/seed-7-1000"}
SKIPPED = {  # beginning of a command -> why it is not run here; its options are looked up
    "make test": "it would run these tests",
    ". .venv/bin/activate": "a test installs nothing",
    "chiasm --install-completion": "it edits the start-up file of a person's shell",
    "chiasm train pocket": "minutes: tests/test_train_cli.py, tests/test_train_model.py",
    "ray up": "it needs a cloud",
    "chiasm submit": "it needs a cluster: tests/test_submit.py",
}


def prose(readme: Path) -> list[str]:
    """Its sentences: paragraphs, list items, headings and cells of tables, without code blocks."""
    text = re.sub(r"```.*?```", "\n\n", readme.read_text(), flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    lines = text.splitlines()
    cells = [cell for line in lines if line.startswith("|") for cell in line.strip("|").split("|")]
    rest = "\n".join("" if line.startswith("|") else line for line in lines)
    blocks = [*re.split(r"\n\s*\n|\n(?=[-#\d])", rest), *cells]
    ends = r"(?<=[.!?])[*)]*\s+|(?<=[。！？；])"
    return [
        sentence.strip()
        for block in blocks
        for sentence in re.split(ends, " ".join(block.split()))
        if sentence.strip()
    ]


def commands(readme: Path) -> list[str]:
    """The lines of its shell blocks, continued lines joined, comments left out."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", readme.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+# .*$|\s{2,}#.*$", "", line).strip()
            if command and not command.startswith("#"):
                found.append(" ".join(command.split()))
    return found


def in_one_language(command: str) -> str:
    """A command with every query in words replaced: what both READMEs must share."""
    return re.sub(r'"[^"*{]*"', '"..."', command)


def figures(readme: Path) -> list[str]:
    """The numbers of its text outside code, in order of size."""
    text = readme.read_text().replace("50 亿", "5 billion")
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", " ", text, flags=re.DOTALL)
    return sorted(re.findall(r"\d[\d,.]*\d|\d", text))


def needs_no_shell(line: str) -> bool:
    """Whether a line is `chiasm` and words and plain quotes, so that shlex splits it as bash."""
    unquoted = re.sub(r"""'[^']*'|"[^"$`\\!]*\"""", "", line)
    return re.fullmatch(r"""chiasm [^<>|&;$`*?\[\]{}()~#!\\'"]*""", unquoted) is not None


class World:
    """A folder in which the READMEs' commands find what they name."""

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self.folder, self.names = folder, names
        self.outputs: dict[str, str] = {}
        shim = folder / "bin" / "chiasm"
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m chiasm "$@"\n')
        shim.chmod(0o755)
        self.environment = environment() | {
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, command: str) -> None:
        """Run a command as a person's shell would; by the shell where it has anything to do."""
        line = self.here(command)
        for beginning, more in REDUCED.items():
            line = f"{line} {more}" if line.startswith(beginning) else line
        line = REPLACED.get(line, line)
        plain, _, given = line.partition(" < ")
        if needs_no_shell(plain) and re.fullmatch(r"[a-z.]*", given):
            stdin = (self.folder / given).read_text() if given else ""
            ran = run_command(shlex.split(plain)[1:], self.environment, stdin, self.folder)
        else:
            ran = subprocess.run(
                ["bash", "-c", line], cwd=self.folder, env=self.environment,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
        self.outputs[command] = ran.stdout

    def here(self, command: str) -> str:
        for name, local in self.names.items():
            command = command.replace(name, local)
        return command


def run_all(readme: Path, world: World) -> None:
    """Run what the README names and this world has not run yet, in the README's order."""
    for command in sorted(commands(readme), key=lambda command: command != "make demo"):
        if not is_skipped(command) and command not in world.outputs:
            world.run(command)


@pytest.fixture(scope="module")
def web(tmp_path_factory) -> Iterator[str]:
    """The URL of a web server with three shards."""
    folder = tmp_path_factory.mktemp("web")
    for number in range(3):
        make_shard(folder / f"{number:05d}.tar", 4, seed=number)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def world(tmp_path_factory, s3_server, towers, web) -> World:
    preload("chiasm.pipeline.encoders.huggingface", "sentence_transformers")
    folder = tmp_path_factory.mktemp("readme")
    image, text = towers
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    siglip = siglip_folder(folder / "siglip", side=32, tower=tower, vision={"patch_size": 16})
    _, direct = s3_server
    prefix = secrets.token_hex(4)
    for number in range(10):
        shard = folder / "photos" / f"{number:05d}.tar"
        tiny_towers.make_pairs(shard, 12, number)
        direct.upload_file(str(shard), "bucket", f"{prefix}/shards/{shard.name}")
    shutil.copytree(folder / "photos", folder / "moved" / "photos")
    tiny_towers.make_pairs(folder / "crawled" / "00000.tar", 30, 11, wrong=0.3)
    for name in "dog.jpg", "boat.png", "crane.png":
        tiny_towers.picture("red", "blue", random.Random(0)).save(folder / name)
    (folder / "queries.txt").write_text("red and blue\n两只狗\n")
    names = {
        "google/siglip2-base-patch16-224": str(siglip),
        "google/mobilenet_v2_1.0_224": str(image),
        "sentence-transformers/all-MiniLM-L6-v2": str(text),
        "s3://bucket/": f"s3://bucket/{prefix}/",
        "https://host": web,
        "/mnt/new/": f"{folder}/moved/",
    }
    return World(folder, names)


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        ("chiasm search c 'a * ~ {b}' --k 5", True),
        ('chiasm search c "a boat?" --k 5', True),
        ("chiasm embed photos/*.tar --to c", False),
        ("chiasm embed photos/{0,1}.tar --to c", False),
        ("chiasm status ~/c", False),
        ('chiasm status "$HOME/c"', False),
        ("chiasm status `pwd`", False),
        ("chiasm search c 'a boat' | head", False),
        ("chiasm search c it\\'s", False),
        ("make demo", False),
    ],
)
def test_what_the_shell_would_change_goes_to_the_shell(line, plain):
    assert needs_no_shell(line) == plain


def is_skipped(command: str) -> bool:
    return any(command.startswith(beginning) for beginning in SKIPPED)


@pytest.mark.timeout(900)
def test_every_command_of_the_readme_runs(world):
    run_all(ENGLISH, world)
    for sheet in "answer.png", "hits.png":
        assert (world.folder / sheet).read_bytes()[:4] == b"\x89PNG"
    queries = [out for command, out in world.outputs.items() if "< queries.txt" in command]
    assert [out.count("\n") for out in queries] == [2]
    assert list((world.folder / "cleaned").glob("*.scores.jsonl"))


@pytest.mark.timeout(900)
def test_every_command_of_the_chinese_readme_runs(world):
    run_all(ENGLISH, world)
    run_all(CHINESE, world)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_python_of_the_readme_runs(readme, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_shard(tmp_path / "demo/seed-7-1000/shards/scenes-00000.tar", 6)
    (tmp_path / "photos.chiasm").symlink_to(tmp_path / "few.chiasm")
    printed, pictures = "", []
    for block in re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL):
        names: dict[str, object] = {}
        exec(block, names)
        printed += capsys.readouterr().out
        pictures += [names["picture"]] if "picture" in names else []
    assert re.search(
        r"^-?0\.\d{3} picture \d of 0 scenes-00000-\w+/\d@\w{8}\n", printed, re.MULTILINE
    )
    assert pictures and all(picture[:2] == b"\xff\xd8" for picture in pictures)


def test_the_options_of_skipped_commands_exist(chiasm):
    options: dict[str, set[str]] = {}  # name of a command -> those that the README gives it
    for command in filter(is_skipped, commands(ENGLISH)):
        called = command.split(" -- ")[0]
        name = re.match(r"chiasm((?: [a-z][a-z-]+\b)*)", called)
        if name is not None:
            options.setdefault(name[1], set()).update(re.findall(r"--[a-z-]+", called))
    assert {" submit", " train pocket"} <= options.keys()
    for name, given in options.items():
        helped = chiasm(*name.split(), "--help")
        assert helped.returncode == 0, helped.stderr
        known = set(re.findall(r"--[a-z-]+", helped.stdout))
        assert sorted(given - known) == [], name


def test_what_is_skipped_is_in_the_readme():
    for beginning in [*SKIPPED, *REPLACED, *REDUCED]:
        assert any(command.startswith(beginning) for command in commands(ENGLISH)), beginning


def test_both_readmes_have_the_same_commands():
    english, chinese = map(commands, READMES)
    assert list(map(in_one_language, english)) == list(map(in_one_language, chinese))


def test_both_readmes_have_the_same_sections_links_and_figures():
    english, chinese = (readme.read_text() for readme in READMES)
    level = re.compile(r"^#+(?= )", re.MULTILINE)
    assert level.findall(english) == level.findall(chinese)
    assert english.count("\n|") == chinese.count("\n|")
    links = [set(re.findall(r"\]\(([^)]+)\)", text)) for text in (english, chinese)]
    assert links[0] ^ links[1] == {"README.md", "README.zh-CN.md"}  # each leads to the other
    assert figures(ENGLISH) == figures(CHINESE)


def test_no_sentence_of_the_readme_is_long():
    long = [sentence for sentence in prose(ENGLISH) if len(sentence.split()) > MAX_WORDS]
    assert long == []


def test_no_sentence_of_the_chinese_readme_is_long():
    sentences = [re.sub(r"`[^`]*`", "", sentence) for sentence in prose(CHINESE)]
    assert [sentence for sentence in sentences if len(sentence) > MAX_CHARACTERS] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_the_readme_names_every_command_encoder_and_preset(readme):
    text = readme.read_text()
    for name in COMMANDS:
        assert f"chiasm {name}" in text or f"make {name}" in text, name
    for family in ENCODERS.keys() - {"fake"}:
        assert f"`{family}" in text, family
    for preset in presets():
        assert f"`{preset}`" in text, preset
