"""Which Ray a command joins, where a Ray of our own keeps its files, and how a worker's death is
told; all without a Ray."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from ray.exceptions import ActorDiedError, OutOfMemoryError, RuntimeEnvSetupError
from tiny_shards import make_shard

from chiasm.jobs import embed_shards, filter_shards, signals
from chiasm.jobs.cli.app import application
from chiasm.jobs.cluster import address as addresses
from chiasm.jobs.cluster import deaths, ray_folder, session
from chiasm.jobs.cluster.address import chosen_address, require_ray
from chiasm.jobs.config import Settings, WorkerSettings
from chiasm.pipeline.errors import ChiasmError, EncoderError, UsageError
from chiasm.pipeline.shards import list_shards


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "variable", "text", "name"),
    [
        (None, "", "local", ""),
        ("", "", "local", ""),
        ("head:1", "other:2", "head:1", "--address head:1"),
        (None, "head:1", "head:1", "RAY_ADDRESS=head:1 in the environment"),
        (None, " ", "local", ""),
        (None, "local", "local", "RAY_ADDRESS=local in the environment"),
        ("auto", "", "auto", "--address auto"),
        ("auto", "head:1", "head:1", "RAY_ADDRESS=head:1 in the environment"),
        ("local", "head:1", "local", "--address local"),
    ],
)
def test_the_address_in_force_and_where_it_was_given(given, variable, text, name, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    chosen = chosen_address(given)
    assert (chosen.text, chosen.name) == (text, name)


def test_an_address_that_nobody_answers_is_told_at_once_and_the_variable_named(monkeypatch, capsys):
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)  # another test's may be on
    for form in (f"127.0.0.1:{closed_port()}", f"ray://127.0.0.1:{closed_port()}"):
        monkeypatch.setenv("RAY_ADDRESS", form)
        with pytest.raises(ChiasmError) as raised, session.connected(None, WorkerSettings()):
            raise AssertionError("joined")
        assert str(raised.value).startswith(
            f"RAY_ADDRESS={form} in the environment: expected a running Ray, "
            "found Connection refused at "
        )
        assert str(raised.value).endswith("or unset RAY_ADDRESS to start a Ray here")
        assert capsys.readouterr().err == f"joining Ray at {form}\n"


def fail_to_load(*arguments: object) -> None:
    raise EncoderError("encoder hf:x", expected="a model that can be loaded")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("embed", "--address", "PORT"), "expected a running Ray"),
        (("filter", "--encoder", "pocket", "--address", "PORT"), "expected a running Ray"),
        (("filter", "--encoder", "pocket:absent"), "encoder hf:x"),
        (("embed", "--encoder", "nobody:x"), "encoder 'nobody:x'"),
        (("embed", "--preset", "absent.yaml"), "preset 'absent.yaml'"),
    ],
)
def test_what_is_refused_early_leaves_nothing_behind(command, message, tmp_path, monkeypatch):
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(filter_shards, "load_matcher", fail_to_load)
    shard = make_shard(tmp_path / "a.tar", 1)
    options = [f"127.0.0.1:{closed_port()}" if word == "PORT" else word for word in command[1:]]
    with pytest.raises(ChiasmError, match=re.escape(message)):
        application()([command[0], str(shard), "--to", str(tmp_path / "to"), *options])
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_a_run_without_any_worker_leaves_no_record_in_a_new_collection(tmp_path, monkeypatch):
    shards = list_shards([str(make_shard(tmp_path / "a.tar", 1))])

    monkeypatch.setattr(embed_shards, "_embed_unfinished", fail_to_load)
    request = embed_shards.EmbedRequest(shards, str(tmp_path / "to"), Settings())
    with pytest.raises(EncoderError):
        embed_shards.embed_shards(request)
    assert list((tmp_path / "to").iterdir()) == []


def test_a_host_that_is_not_found_and_a_port_that_is_silent_are_bounded_in_time(monkeypatch):
    monkeypatch.setattr(addresses, "PORT_SECONDS", 0.2)
    monkeypatch.setattr(addresses, "RAY_SECONDS", 0.2)
    never = threading.Event()
    with monkeypatch.context() as patch:  # a name service that does not answer
        patch.setattr(addresses, "_connect_error", lambda host, port: never.wait(60))
        with pytest.raises(ChiasmError, match=r"found no answer within 0\.2 s at head:6379"):
            require_ray(chosen_address("head:6379"))
        patch.setattr(addresses, "_connect_error", lambda host, port: "")
        patch.setattr(addresses, "_first_request", lambda host, port: never.wait(60))
        with pytest.raises(ChiasmError, match=r"open port at head:6379, behind which no Ray"):
            require_ray(chosen_address("head:6379"))
        require_ray(chosen_address("ray://head:10001"))  # Ray's client is bounded by itself
    never.set()


@pytest.mark.parametrize(
    "form",
    ["http://127.0.0.1:8265", "foo://head:1", "head", ":6379", "head:x", "ray://", "ray://head",
     "a:1:2", "ray://ann:hush@head:1", "head:99999", "head:6379/x", "head:0"],
)  # fmt: skip
def test_what_is_no_address_of_a_ray_is_refused_before_anything_is_asked(form, monkeypatch, capsys):
    monkeypatch.setattr(addresses, "_within", lambda *given: pytest.fail("asked"))
    with pytest.raises(UsageError, match=r"expected host:port of a running Ray, ray://host:port"):
        require_ray(chosen_address(form))
    assert capsys.readouterr().err == ""


WAITS = """
import ctypes
from chiasm.jobs import signals
signals.REPEAT_SECONDS = -1
signals.STOPPING.install()
with signals.STOPPING.deferred():
    print("inside", flush=True)
    while True:
        ctypes.CDLL(None).pause()
"""


def test_a_second_signal_ends_a_process_that_is_inside_compiled_code():
    with subprocess.Popen(
        [sys.executable, "-c", WAITS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "inside\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        # Of two that wait at the same moment the system delivers either first.
        assert process.wait() in (128 + signal.SIGINT, 128 + signal.SIGTERM)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_what_comes_within_half_a_second_is_the_first_signal_again(second, monkeypatch):
    times = iter([100.0, 100.4, 100.6])
    left: list[tuple[int, float | None]] = []
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(signals.os, "_exit", lambda code: left.append((code, next(times, None))))
    read, write = os.pipe()
    os.write(write, bytes([signal.SIGTERM, signal.SIGCHLD, second, second]))
    os.close(write)
    signals._leave_at_second(read)
    assert left == [(128 + second, None)]  # at the third of them


def bases(monkeypatch, *folders: Path) -> None:
    """The folders that are tried, and no others."""
    for name in ("RAY_TMPDIR", "TMPDIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_folder, "FOLDERS", tuple(map(str, folders)))


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path shorter than that of `tmp_path`."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="c") as folder:
        yield Path(folder)


def test_ray_keeps_its_files_where_its_sockets_fit(short, monkeypatch):
    bases(monkeypatch, short)
    long = short / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    assert ray_folder.ray_folder() == short / "ray"
    assert [*(short / "ray").iterdir()] == []  # no probe is left
    monkeypatch.setenv("RAY_TMPDIR", str(short / "none"))
    assert ray_folder.ray_folder() == short / "ray"


def test_a_ray_folder_of_another_user_is_not_used(short, monkeypatch):
    bases(monkeypatch, short)
    (short / "ray").mkdir()
    mine = os.geteuid()
    stat = Path.stat
    monkeypatch.setattr(os, "geteuid", lambda: stat(short / "ray").st_uid + 1)
    with pytest.raises(ChiasmError, match="is another user's"):
        ray_folder.ray_folder()
    monkeypatch.setattr(os, "geteuid", lambda: mine)
    (short / "ray").rmdir()
    (short / "elsewhere").mkdir()
    (short / "ray").symlink_to(short / "elsewhere")  # ours, and leads to ours
    assert ray_folder.ray_folder() == short / "ray"
    (short / "ray").unlink()
    (short / "ray").symlink_to("/proc/1")
    assert ray_folder.ray_folder() == short / f"ray-{os.getuid()}"


def test_where_no_folder_will_do_the_error_names_each_and_what_to_set(short, monkeypatch):
    full, file = short / "full", short / "file"
    full.mkdir()
    file.touch()
    bases(monkeypatch, short / ("x" * 60), full, file)
    (short / ("x" * 60)).mkdir()
    monkeypatch.setattr(ray_folder, "ROOM_BYTES", 1 << 62)
    with pytest.raises(ChiasmError) as raised:
        ray_folder.ray_folder()
    message = str(raised.value)
    assert "its path is too long for a socket" in message and "MiB of room;" in message
    assert f"{file}: Not a directory" in message
    assert re.search(
        r"set RAY_TMPDIR to one with \d+ MiB of room and a path of at most 39 bytes", message
    )


def test_a_machine_that_cannot_reach_itself_is_told(monkeypatch):
    def unreachable(*given, **options):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    with pytest.raises(ChiasmError, match=r"found Network is unreachable; run `ip link set lo up`"):
        session._require_loopback()


def test_a_home_that_cannot_be_written_gets_a_token_of_this_process_alone(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    session._provide_token()
    assert "RAY_AUTH_TOKEN" not in os.environ  # Ray keeps its own at home
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    session._provide_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


DIED = """The actor died unexpectedly before finishing this task.
\tpid: 4711
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: """
SILENT = DIED + (
    "Worker unexpectedly exits with a connection error code 2. End of file. Some common causes "
    "include: (1) the process was killed by the OOM killer due to high memory usage"
)


def died(text: str) -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = text
    return error


@pytest.mark.parametrize(
    ("error", "cause", "memory"),
    [
        (OutOfMemoryError("Task was killed due to the node running low on memory."),
         "ended by Ray, as its node ran low on memory", True),
        (died(DIED + "Worker exits with an exit code 4."), "exit code 4", False),
        (died(DIED + "Worker exits with an exit code 1. The process receives a SIGTERM."),
         "ended by SIGTERM", False),
        (died("The actor died because of an error raised in its creation task, \x1b[36mray::A\n"
              "  File x\nModuleNotFoundError: No module named 'chiasm'\nmore"),
         "ModuleNotFoundError: No module named 'chiasm'", False),
        (died("The actor died because its node has died. Node Id: 1"), "its node is gone", False),
        (RuntimeEnvSetupError("Failed.\nOSError: no room"),
         "its environment could not be made: OSError: no room", False),
    ],
)  # fmt: skip
def test_why_a_worker_died_as_ray_tells_it(error, cause, memory):
    death = deaths.death_of(error)
    assert death.cause == cause
    assert ("memory" in death.advice) == memory and death.advice


@pytest.mark.parametrize(
    ("written", "killed", "cause", "memory"),
    [
        (":job_id:1\n:actor_name:A\n", 0, "killed (SIGKILL), and not by the kernel for memory",
         False),
        ("", 1, "killed by the kernel, for want of memory", True),
        ("", None, "killed (SIGKILL), as for want of memory", True),
        ("Fatal Python error: Segmentation fault\n\nThread x\n", 0, "crashed: Segmentation fault",
         False),
        (":job_id:1\nTraceback\nValueError: boom\n\n", 0,
         "it crashed or was killed; its last line: ValueError: boom", False),
        (None, 0, "it crashed or was killed; its log is with Ray's on its machine", True),
    ],
)  # fmt: skip
def test_why_a_worker_died_that_said_nothing_to_ray(
    written, killed, cause, memory, monkeypatch, tmp_path
):
    node = type("Node", (), {"get_logs_dir_path": lambda self: str(tmp_path)})
    monkeypatch.setattr(
        deaths.ray._private.worker, "_global_node", None if written is None else node()
    )
    (tmp_path / "worker-ab-01-4711.err").write_text(written or "")
    monkeypatch.setattr(deaths, "_OOM_KILLS_BEFORE", 0)
    monkeypatch.setattr(deaths, "oom_kills", lambda: killed)
    death = deaths.death_of(died(SILENT))
    assert death.cause == cause
    assert ("memory" in death.advice) == memory
