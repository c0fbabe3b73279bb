"""The command line as a person meets it: what it prints, where, and how it exits."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tarfile
import tomllib

import pytest
from conftest import ROOT, environment, jpeg, make_shard
from source_tree import parse

from chiasm.index import RerankStage, build_index
from chiasm.jobs.cli import app, embed
from chiasm.jobs.cli.app import COMMANDS
from chiasm.jobs.cli.command_group import Group, help_text
from chiasm.jobs.cli.logs import (
    KEPT_FILES,
    JsonFormatter,
    LogFormat,
    LogLevel,
    remove_old_files,
    set_up_logging,
)
from chiasm.jobs.cli.options import folder_path
from chiasm.jobs.console import json_line, printable
from chiasm.pipeline.embed_summary import EmbedSummary
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.make import make_collection


def refused(ran: subprocess.CompletedProcess[str], *parts: str, code: int = 1) -> None:
    """The command said one line on stderr, nothing on stdout, and failed."""
    assert ran.returncode == code, ran
    assert ran.stdout == ""
    assert ran.stderr.startswith("chiasm: ")
    assert ran.stderr.count("\n") == 1, ran.stderr
    for part in parts:
        assert part in ran.stderr


def plain(text: str) -> str:
    """Help without its frames, in one line."""
    return " ".join(text.replace("│", " ").split())


def names() -> list[str]:
    """The full name of every command."""
    return [
        f"{name} {inner}".strip()
        for name, known in COMMANDS.items()
        for inner in (known.commands if isinstance(known, Group) else [""])
    ]


def test_help_lists_every_command_with_what_it_does(chiasm):
    ran = chiasm("--help")
    assert ran.returncode == 0
    for name, known in COMMANDS.items():
        summary = known.summary if isinstance(known, Group) else known
        assert f"{name} {summary}" in plain(ran.stdout)


@pytest.mark.parametrize("group", [name for name in COMMANDS if isinstance(COMMANDS[name], Group)])
def test_a_group_lists_its_commands(chiasm, group):
    known = COMMANDS[group]
    ran = chiasm(group, "--help")
    assert ran.returncode == 0 and known.summary in plain(ran.stdout)
    for name, summary in known.commands.items():
        assert f"{name} {summary}" in plain(ran.stdout)


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[str, str]]:
    """Of every command what `--help` prints on a terminal of 80 columns, and its HELP."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        for name in names():
            with contextlib.redirect_stdout(io.StringIO()) as out:
                app.application()([*name.split(), "--help"], standalone_mode=False)
            found[name] = out.getvalue(), app.load_command(name)[1]
    return found


@pytest.mark.parametrize("name", names())
def test_every_command_has_help_with_examples_that_are_whole(helps, name):
    printed, details = helps[name]
    examples = [line.strip() for line in details.splitlines() if line.startswith("  ")]
    assert examples and all(example.startswith(f"chiasm {name}") for example in examples)
    visible = printed.partition("Examples:")[2].splitlines()
    for example in examples:  # each begins on a line of its own, alike, and no word is cut
        first, *rest = help_text("", f"  {example}").splitlines()[1:]
        at = next(number for number, line in enumerate(visible) if line.rstrip() == f" {first}")
        assert [line.rstrip() for line in visible[at + 1 : at + 1 + len(rest)]] == [
            f" {line}" for line in rest
        ]


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("chiasm se", {"search", "sentiment"}),
        ("chiasm s", {"search", "sentiment", "status", "submit"}),
        ("chiasm train ", {"pocket", "two-tower", "joint"}),
        ("chiasm status --j", {"--json"}),
    ],
)
def test_the_shell_completes_names_and_options(chiasm, monkeypatch, words, completed):
    monkeypatch.setenv("_CHIASM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    ran = chiasm()
    assert (ran.returncode, set(ran.stdout.split())) == (0, completed)


def test_completion_can_be_installed(chiasm, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    # The shell is named here: none may have started the tests.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    ran = chiasm("--install-completion", "bash")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / ".bashrc").read_text().strip()
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_CHIASM_COMPLETE=complete_bash" in script.read_text()


def test_log_lines_go_to_stderr_as_asked_and_to_a_file(chiasm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shard = make_shard(tmp_path / "a.tar", 3)
    quiet = chiasm("embed", shard, "--encoder", "fake", "--to", tmp_path / "c")
    assert "opened" not in quiet.stderr, quiet.stderr
    (file,) = (tmp_path / "state/chiasm/logs").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    (committed,) = [line for line in lines if line["message"].startswith("committed ")]
    assert (committed["rows"], committed["dropped"]) == (3, 0)
    assert committed["logger"] == "chiasm.pipeline.embed" and committed["worker"]
    built = chiasm("--log-level", "info", "index", "build", tmp_path / "c")
    assert "info index.build.fill: filled segment" in built.stderr
    loud = chiasm("--log-level", "info", "--log-format", "json", "index", "build", tmp_path / "c")
    records = [json.loads(line) for line in loud.stderr.splitlines() if line.startswith("{")]
    assert "3 rows of 1 shards" in records[0]["message"]


def test_a_log_file_that_cannot_be_written_is_no_reason_to_stop(chiasm, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    shard = make_shard(tmp_path / "a.tar", 3)
    ran = chiasm("embed", shard, "--encoder", "fake", "--to", tmp_path / "c")
    assert ran.returncode == 0, ran.stderr


def test_the_newest_log_files_are_kept(tmp_path):
    for number in range(KEPT_FILES + 5):
        (tmp_path / f"2026-{number:03d}.jsonl").touch()
    remove_old_files(tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) == KEPT_FILES - 1 and kept[0] == "2026-006.jsonl"


def test_the_console_script_is_the_same_program():
    script = os.path.join(os.path.dirname(sys.executable), "chiasm")
    ran = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("chiasm ")


INTERRUPTS = """
import os, signal, sys
class Interrupts:
    def find_spec(name, path=None, target=None):
        if name == "chiasm.jobs":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts)
"""


@pytest.mark.parametrize("way", ["module", "script"])
def test_a_command_that_is_interrupted_while_it_begins_says_nothing(way, tmp_path):
    """The signal comes with the first import of a room: what a person can meet is any later."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS)
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["chiasm"]
    module, _, function = entry.partition(":")
    script = ["-c", f"import sys; from {module} import {function}; sys.exit({function}())"]
    ran = subprocess.run(
        [sys.executable, *(script if way == "script" else ["-m", "chiasm"]), "--version"],
        env={**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        # A shell ignores ctrl-C for what it runs in the background, these tests perhaps.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (-signal.SIGINT, "", "")


def test_a_wrong_command_or_flag_exits_with_2(chiasm):
    misspelt = chiasm("serach")
    assert misspelt.returncode == 2 and "Did you mean 'search'?" in plain(misspelt.stderr)
    refused(chiasm("search", "c", "a", "red", "boat"), "chiasm search c 'a red boat'", code=2)
    assert chiasm("embed", "a.tar", "--to", "c", "--nope").returncode == 2
    assert chiasm("embed", "a.tar").returncode == 2


def test_an_argument_in_the_wrong_place_gets_the_command_as_it_should_be(chiasm, tmp_path):
    made = tmp_path / "c"
    shard = make_shard(tmp_path / "a.tar", 2)
    make_collection(shard, made, "fake")
    refused(chiasm("search", "a star", made), f"type: chiasm search {made} 'a star'", code=2)
    refused(chiasm("search", "a", "star", made), f"type: chiasm search {made} 'a star'", code=2)
    made.rename(tmp_path / "my two photos")
    split = chiasm("search", "my", "two", "photos", "a", "star", cwd=tmp_path)
    refused(split, "type: chiasm search 'my two photos' 'a star'", code=2)
    image = chiasm("search", "--image", "x.png", "a red star")
    refused(image, "type: chiasm search COLLECTION 'a red star' --image x.png", code=2)
    refused(chiasm("train", "--preset", "pocket"), "type: chiasm train pocket ...", code=2)
    embed = chiasm("embed", "--log-level", "info", shard, "--to", made)
    refused(embed, "type: chiasm --log-level info embed ...", code=2)
    assert "--log-level" not in chiasm("embed", "--help").stdout


def test_an_example_breaks_before_an_option_outside_quotes_only():
    words = "chiasm search photos.chiasm 'a long text -- with --dashes in it and more'"
    assert help_text("", f"  {words} --column text --k 5").splitlines()[1:] == [
        f"  {words} \\",
        "      --column text --k 5",
    ]


def test_a_json_log_line_leaves_out_private_fields():
    record = logging.makeLogRecord({"msg": "a", "_ray_timestamp_ns": 1, "shard": "b"})
    line = json.loads(JsonFormatter().format(record))
    assert set(line) == {"time", "level", "logger", "message", "shard"}


def test_embed_says_when_faiss_is_not_installed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(embed, "find_spec", lambda name: None)
    summary = EmbedSummary(2, 2, 0, 1, 0, [], 1.0, {"total": 1.0})
    monkeypatch.setattr(embed, "embed_shards", lambda *given, **options: summary)
    embed.embed([str(make_shard(tmp_path / "a.tar", 2))], str(tmp_path / "c"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "faiss" in line]
    assert "which chiasm index build will need" in line


def test_bad_input_is_one_line_and_leaves_nothing(chiasm, tmp_path):
    to = tmp_path / "c"
    good = make_shard(tmp_path / "good.tar", 3)
    embed = ("embed", "--to", to, "--encoder", "fake")
    refused(chiasm(*embed, tmp_path / "none.tar"), "none.tar")
    refused(chiasm("embed", good, "--to", to, "--encoder", "clip"), "pocket, hf:ID_OR_DIR", code=2)
    refused(chiasm(*embed, good, "--set", "batch.sise=2"), "did you mean batch.size", code=2)
    refused(chiasm(*embed, good, "--set", "batch.size=[1"), "found expected ',' or ']'", code=2)
    refused(chiasm(*embed, "ftp://host/a.tar"), "s3://", code=2)
    refused(chiasm(*embed, "https://ann:hush@host/a.tar"), "credentials in it", code=2)
    refused(chiasm(*embed, "https://host/a.tar?key=hush"), "give --allow-query", code=2)
    refused(chiasm(*embed, "-", input="\n"), "expected at least one shard", code=2)
    assert not to.exists()


def test_a_read_only_target_is_one_line(chiasm, tmp_path):
    good = make_shard(tmp_path / "good.tar", 3)
    (tmp_path / "file").touch()
    refused(chiasm("embed", good, "--to", tmp_path / "file" / "c", "--encoder", "fake"), "file/c")
    refused(chiasm("embed", good, "--to", "/proc/chiasm", "--encoder", "fake"), "/proc/chiasm")


def test_what_lies_in_a_persons_folder_is_not_imported_in_place_of_ours(tmp_path):
    for name in ("pipeline", "jobs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('not ours')")
    for name in ("index", "typing", "random", "logging", "contextlib", "safetensors", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not ours')")
    ran = subprocess.run(
        [sys.executable, "-m", "chiasm", "status", "x"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    refused(ran, "expected a collection")


def test_programs_say_nothing_of_their_imports_and_exit(tmp_path):
    """Real programs: the commands of other tests are forks, which import and exit otherwise."""
    shard, to = make_shard(tmp_path / "a.tar", 3), tmp_path / "c"
    make_collection(shard, to, "fake")
    build_index(to)
    (tmp_path / "a.jpg").write_bytes(jpeg(random.Random(0)))
    commands = [
        ("match", tmp_path / "a.jpg", "a boat", "--encoder", "fake:matcher"),
        ("search", to, "a boat"),
        ("check", to, "--reencode", "1"),
        ("filter", shard, "--to", tmp_path / "f", "--encoder", "fake:matcher", "--drop", "0.3"),
    ]
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "chiasm", *map(str, command)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for command in commands
    ]  # fmt: skip
    progress = {"filter": "scored 1 of 1 shards\n"}
    for (name, *_), program in zip(commands, programs, strict=True):
        out, errors = program.communicate()
        assert (program.returncode, errors) == (0, progress.get(name, "")), name
        assert out, name


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_json_is_ascii_where_stdout_is_not_utf8_and_commands_no_terminal(encoding, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    value = {"字": "é \x1b[2J \x9b2J \u202e \ud800 \U000e0041"}
    line = json_line(value)
    assert line.isascii() == (encoding != "utf-8")
    assert json.loads(line) == value
    assert not {"\x1b", "\x9b", "\u202e", "\ud800", "\U000e0041"} & set(line)
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line(float("nan"))


def test_what_no_line_shows_is_escaped():
    assert printable("a\nb\x9b\u061c\u200e\u202e\u2066\ufeff\ud800 字é") == (
        r"a\nb\x9b\u061c\u200e\u202e\u2066\ufeff\ud800 字é"
    )


def test_all_that_a_command_prints_is_made_printable():
    """Every `print` of a command is given a constant, or what `printable` or `json_line` made."""

    def is_safe(node: ast.expr) -> bool:
        if isinstance(node, ast.BinOp):
            return is_safe(node.left) and is_safe(node.right)
        made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        return isinstance(node, ast.Constant) or (
            made and node.func.id in ("printable", "printable_columns", "json_line")
        )

    folder = ROOT / "jobs/cli"
    raw = [
        f"{path.name}:{node.lineno}"
        for path in sorted(folder.glob("*.py"))
        for node in ast.walk(parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id == "print" and not (len(node.args) == 1 and is_safe(node.args[0]))
    ]
    assert raw == []


def test_no_folder_is_named_by_an_empty_text():
    """An empty path is the current folder; each option that is a path has to refuse it."""
    with pytest.raises(UsageError, match="'': expected a folder's path, found an empty one"):
        folder_path("")
    with pytest.raises(
        UsageError, match=r"s3://\*\*\*: expected a folder of this machine, found a"
    ):
        folder_path("s3://bucket/model")
    paths = [
        ast.unparse(node)
        for path in sorted((ROOT / "jobs/cli").glob("*.py"))
        for node in ast.walk(parse(path.read_text()))
        if isinstance(node, ast.Subscript) and ast.unparse(node).startswith("Annotated[Path")
    ]
    assert len(paths) == 3 and all("parser=folder_path" in each for each in paths)


def test_a_fault_of_ours_is_one_line_and_its_traceback_is_in_the_log(monkeypatch, capsys, tmp_path):
    def broken():
        set_up_logging(LogLevel.warning, LogFormat.text)
        raise KeyError("a\x1b[2J\nb")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(app, "prepare_process", lambda: None)
    monkeypatch.setattr(app, "application", broken)
    with pytest.raises(SystemExit) as left:
        app.main(["status"])
    (log,) = (tmp_path / "chiasm/logs").iterdir()
    assert left.value.code == 1 and "Traceback" in json.loads(log.read_text())["message"]
    assert capsys.readouterr().err == (
        f"chiasm: a fault of chiasm: KeyError: 'a\\x1b[2J\\nb'; please report it with {log}\n"
    )
    for handler in list(logging.getLogger("chiasm").handlers):
        logging.getLogger("chiasm").removeHandler(handler)
        handler.close()


CLOSED = """
import os, sys
from chiasm.jobs.console import open_closed_streams
open_closed_streams()
assert os.open(os.devnull, os.O_RDONLY) > 2
print("lost", file=sys.stderr)
print("a result")
try:
    sys.stdout.flush()
except OSError as error:
    os._exit(error.errno)
"""


def test_a_closed_stdout_is_an_output_that_fails_and_no_file_takes_its_number():
    command = f'exec "{sys.executable}" -c "$1" <&- >&- 2>&-'
    ran = subprocess.run(["sh", "-c", command, "sh", CLOSED], env=environment(), check=False)
    assert ran.returncode == errno.EBADF


@pytest.mark.parametrize("stage", ["match:²", "match:٣", "match:" + "9" * 5000, "match:-1", "²"])
def test_a_depth_of_reranking_is_written_in_digits(stage):
    with pytest.raises(UsageError, match="expected RERANKER:N with N at least 1"):
        RerankStage.parse(stage)


def test_a_folder_that_is_gone_is_one_line(monkeypatch):
    def gone():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(UsageError, match="the current folder: expected one that is there"):
        app._require_folder()


def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "chiasm", "--version"],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ran.returncode, ran.stderr) == (1, "chiasm: output: No space left on device\n")


def test_the_whole_way_from_shards_to_answers(chiasm, shards, tmp_path):
    to = tmp_path / "c"
    ran = chiasm("embed", *shards, "--to", to, "--encoder", "fake", "--json")
    assert ran.returncode == 0, ran.stderr
    summary = json.loads(ran.stdout)
    assert summary["samples"] == summary["rows"] == 60
    assert summary["dropped"] == 0
    assert summary["shards"] == {"done": 3, "skipped": 0, "failed": [], "damaged": []}
    assert summary["pairs_per_second"] > 0
    assert "total" in summary["seconds"]

    refused(chiasm("search", to, "x"), "chiasm index build")
    assert json.loads(chiasm("status", to, "--json").stdout)["index"]["state"] == "missing"
    assert f"index: missing; run chiasm index build {to}" in chiasm("status", to).stdout

    refused(chiasm("index", "build", to, "--set", "index.nprobes=1"), "index.nprobe", code=2)
    ran = chiasm("index", "build", to, "--set", "index.segment_rows=20")
    assert ran.returncode == 0, ran.stderr
    assert "60 rows of 3 shards" in ran.stdout

    ran = chiasm("search", to, "picture 7 of 1", "--column", "text", "-k", "3", "--json")
    assert ran.returncode == 0, ran.stderr
    (line,) = ran.stdout.splitlines()
    answer = json.loads(line)
    assert set(answer) == {"query", "results", "seconds"}
    assert [result["rank"] for result in answer["results"]] == [1, 2, 3]
    best = answer["results"][0]
    assert {"rank", "id", "key", "shard", "score", "scores", "caption", "meta"} < set(best)
    assert (best["caption"], best["key"]) == ("picture 7 of 1", "00100007")
    assert best["meta"] == {"number": 7, "even": False}
    assert best["id"].startswith(best["shard"] + "/7@")
    assert best["score"] == pytest.approx(1, abs=1e-3)

    queries = "picture 1 of 0\n\npicture 2 of 2\n"
    ran = chiasm("search", to, "--column", "text", "-k", "1", "--json", input=queries)
    found = [json.loads(line)["results"][0]["caption"] for line in ran.stdout.splitlines()]
    assert found == ["picture 1 of 0", "picture 2 of 2"]

    ran = chiasm("status", to, "--json")
    status = json.loads(ran.stdout)
    assert (status["rows"], status["shards"], status["encoder"]) == (60, 3, "fake")
    assert [run["state"] for run in status["runs"]] == ["done", "done"]
    kinds = dict.fromkeys(("image", "text", "joint"), "exact")
    assert status["index"] == {
        "state": "current", "generation": 1, "rows": 60, "columns": kinds, "stale_shards": {},
        "do": "", "instead_of": "", "deleted": 0, "drift": {}, "audited": [], "audit_problem": "",
    }  # fmt: skip
    assert "index: generation 1, 60 rows, columns image (exact)" in chiasm("status", to).stdout

    refused(
        chiasm("search", to, "x", "--set", "batch.size=3"),
        "a setting that this command uses",
        code=2,
    )
    ran = chiasm("check", to, "--reencode", "5", "--set", "encoder.threads=1")
    assert ran.returncode == 0, ran.stdout + ran.stderr

    make_shard(shards[0].parent / "more.tar", 5, seed=9)
    assert chiasm("embed", shards[0].parent, "--to", to).returncode == 0  # its own encoder
    refused(chiasm("search", to, "x"), "chiasm index add")
    status = json.loads(chiasm("status", to, "--json").stdout)["index"]
    assert status["state"] == "stale" and list(status["stale_shards"].values()) == ["new"]
    assert "stale (shards: 1 new); run chiasm index add" in chiasm("status", to).stdout
    (to / "index" / "CURRENT").write_text("no number")
    status = json.loads(chiasm("status", to, "--json").stdout)["index"]
    assert status["state"] == "stale" and "CURRENT" in status["instead_of"]


def test_losses_and_quarantined_shards_are_told_and_fail(chiasm, tmp_path):
    lossy = make_shard(tmp_path / "lossy.tar", 4, broken=1)
    (tmp_path / "picture.tar").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(600))
    ran = chiasm("embed", tmp_path / "*.tar", "--to", tmp_path / "c", "--encoder", "fake")
    assert ran.returncode == 1
    assert "3 rows of 4 samples" in ran.stdout
    assert "1 not_a_picture" in ran.stdout
    aside, dropped, error, log = ran.stderr.splitlines()[-4:]  # progress may come before
    assert dropped.startswith(f"dropped {lossy} 00000003: not_a_picture")
    assert aside.startswith(f"quarantined {tmp_path / 'picture.tar'}: expected a tar")
    assert "a PNG picture" in aside
    assert "1 quarantined (listed above)" in error
    assert log.startswith("log: ") and log.endswith(".jsonl")
    loud = ("--log-level", "info", "embed", tmp_path / "*.tar", "--to", tmp_path / "c")
    assert "log: " not in chiasm(*loud).stderr  # stderr showed the same lines


def test_what_a_shard_holds_does_not_command_the_terminal(chiasm, tmp_path):
    title = "\x1b]0;title\x07a boat\x9b2J"  # sets a window's title, clears its screen
    shard = tmp_path / "a.tar"
    make_shard(shard, 2, captions=[title])
    data = shard.read_bytes()
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo("k\x1b[31m.jpg"), io.BytesIO())
        # One field of two types: the index tells of it by its name.
        for key, value in (("y", "1"), ("z", '"one"')):
            member = f'{{"caption": "c", "f\\u001b[5m": {value}}}'.encode()
            info = tarfile.TarInfo(f"{key}.json")
            info.size = len(member)
            tar.addfile(info, io.BytesIO(member))
    assert shard.read_bytes() != data
    to = tmp_path / "c"
    ran = chiasm("embed", shard, "--to", to, "--encoder", "fake")
    assert "k\\x1b[31m" in ran.stderr and "\x1b[31m" not in ran.stderr, ran
    ran = chiasm("index", "build", to)
    assert "f\\x1b[5m" in ran.stdout and "\x1b" not in ran.stdout, ran
    ran = chiasm("search", to, title)
    assert "\\x1b]0;title\\x07a boat\\x9b2J" in ran.stdout, ran
    assert not {"\x1b", "\x07", "\x9b"} & set(ran.stdout + ran.stderr)
