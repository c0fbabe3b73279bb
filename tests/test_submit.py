"""Jobs on a real cluster: `ray start --head`, a command packed, sent, followed and ended."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_shard

from chiasm.jobs.cluster.packing import EXCLUDES, LIMIT_BYTES, pack
from chiasm.jobs.cluster.submit import dashboard_url, stop_command, submit
from chiasm.pipeline.collection import embeddings
from chiasm.pipeline.errors import UsageError
from chiasm.pipeline.storage import Folder

BIN = Path(sys.executable).parent
TOKEN = "0123456789abcdef" * 4  # of a cluster that lets nobody in without one


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> tuple[str, str]:
    """A Ray head of its own: (its address, its dashboard's)."""
    port, dashboard = free_port(), free_port()
    # Ray puts sockets there, whose paths may have 107 characters.
    temporary = Path("/tmp") / f"chiasm-ray-{os.getpid()}"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=4"]
    command += [f"--dashboard-port={dashboard}", "--include-dashboard=true"]
    # Its default port is taken where another Ray runs on this machine.
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    command += [f"--temp-dir={temporary}", "--object-store-memory=134217728"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as ray:
        wait_for(dashboard)
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}"
        ray.terminate()  # with --block it takes all that it started along
    shutil.rmtree(temporary, ignore_errors=True)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the dashboard does not answer"
            time.sleep(0.2)


def run(*arguments: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The installed command, as from a shell that knows of no other chiasm."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment.pop("RAY_AUTH_MODE", None)
    return subprocess.run(
        [str(BIN / "chiasm"), *map(str, arguments)],
        cwd=cwd,
        env={**environment, "RAY_AUTH_TOKEN": TOKEN, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(170)
def test_a_job_embeds_on_the_cluster_with_files_that_travel_along(head, tmp_path):
    shard = make_shard(tmp_path / "a.tar", 5)
    (tmp_path / "mine.yaml").write_text("workers: {cpus: 1}\nbatch: {size: 4}\n")
    for name in ("random.py", "safetensors.py"):  # of the person's, and run by nobody
        (tmp_path / name).write_text("raise AssertionError('a file of the person was imported')")
    command = ("embed", shard, "--to", tmp_path / "c", "--preset", "mine.yaml")
    files = ("--file", "mine.yaml", "--file", "random.py", "--file", "safetensors.py")
    ran = run("submit", "--address", head[1], *files, "--", *command, cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "5 rows of 5 samples" in ran.stdout
    packed, job = ran.stderr.splitlines()[:2]
    assert packed.startswith("packed ") and job.startswith("job ")
    assert [file.rows for file in embeddings(Folder(str(tmp_path / "c")))] == [5]

    # The same collection from this machine, joining the cluster as a driver: nothing left to do,
    # then a second shard to embed there.
    make_shard(tmp_path / "b.tar", 3, seed=1)
    command = ("embed", tmp_path, "--to", tmp_path / "c", "--address", head[0])
    ran = run(*command, cwd=tmp_path, RAY_AUTH_MODE="token")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr.startswith(f"joining Ray at {head[0]}\n")
    assert "8 rows of 8 samples" in ran.stdout
    assert "1 done, 1 were done already" in ran.stdout


def test_a_job_that_fails_fails_the_command_and_shows_why(head, tmp_path):
    ran = run("submit", "--address", head[1], "--", "status", tmp_path / "none", cwd=tmp_path)
    assert ran.returncode == 1
    assert "expected a collection" in ran.stdout
    assert re.search(r"chiasm: job \S+: expected success, found failed", ran.stderr)


def test_no_cluster_there_is_one_line(chiasm, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    ran = chiasm("submit", "--address", f"http://{address}", "--", "status", "x", cwd=tmp_path)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "expected the dashboard of a running Ray cluster" in ran.stderr


@pytest.mark.parametrize(
    ("address", "found"),
    [("ray://head:10001", "an address of ray://"), ("s3://head", "an address of s3://"),
     ("http://", "no host in it")],
)  # fmt: skip
def test_what_is_no_address_of_a_dashboard_is_one_line(address, found, chiasm, tmp_path):
    ran = chiasm("submit", "--address", address, "--", "status", "x", cwd=tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
    assert f"expected the cluster's dashboard, http://HOST:8265, found {found}" in ran.stderr


def test_an_address_without_http_is_that_of_the_dashboard(chiasm, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    assert dashboard_url(address) == f"http://{address}"
    ran = chiasm("submit", "--address", address, "--", "status", "x", cwd=tmp_path)
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1), ran.stderr
    assert "expected the dashboard of a running Ray cluster" in ran.stderr


def test_the_command_that_stops_a_job_works_as_printed(head, tmp_path, monkeypatch):
    shard = make_shard(tmp_path / "a.tar", 2)
    # No node has so many cores: the job waits for one until it is stopped.
    command = ("embed", shard, "--to", tmp_path / "c", "--set", "workers.cpus=99")
    ran = run("submit", "--address", head[1], "--no-wait", "--", *command, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    status_hint, hint = ran.stderr.splitlines()[-2:]
    status = subprocess.run(
        ["sh", "-c", status_hint.removeprefix("status: ")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert status.returncode == 0 and ran.stdout.strip() in status.stdout + status.stderr, status
    typed = stop_command(head[1].removeprefix("http://"), ran.stdout.strip())
    assert hint.startswith("stop: ") and hint.endswith(typed.partition(" ")[2])
    stopped = subprocess.run(["sh", "-c", typed], capture_output=True, text=True, check=False)
    assert stopped.returncode == 0 and "was stopped" in stopped.stdout, stopped


@pytest.fixture
def target(tmp_path) -> Path:
    """The folder into which a job is packed."""
    (tmp_path / "packed").mkdir()
    return tmp_path / "packed"


def names(target: Path) -> set[str]:
    """What was packed of a person's files."""
    folder = target / "submitted"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_a_job_holds_our_package_by_content_and_not_what_is_excluded(tmp_path, target):
    (tmp_path / "extra").mkdir()
    for name in ("notes.txt", "big.tar", "settings.yaml"):
        (tmp_path / "extra" / name).write_text("x")
    packed = pack(target, [str(tmp_path / "extra")], [*EXCLUDES, "*.yaml"])
    assert names(target) == {"extra/notes.txt"} and packed.excluded == 2
    ours = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert {"chiasm/jobs/cli/app.py", "chiasm/pipeline/embed.py", "chiasm/__main__.py"} <= ours
    assert {"chiasm/pipeline/pocket/model.safetensors", "chiasm/jobs/presets/laptop.yaml"} <= ours
    assert not any(name.endswith((".tar", ".pyc")) for name in ours)
    assert not any(path.is_symlink() for path in target.rglob("*"))


def test_dotfiles_and_links_out_of_a_folder_stay_and_are_named(tmp_path, target):
    project, home = tmp_path / "project", tmp_path / "home"
    for path in (project / ".env", project / "sub/.aws/credentials", home / "id_rsa"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    (project / "sub" / "model.py").write_text("good")
    os.mkfifo(project / "pipe")
    links = {
        "key": home / "id_rsa", "home": home, "nowhere": home / "none", "dotted": project / ".env",
        "up": project / "..", "circle": project / "circle", "inside": project / "sub/model.py",
        "sub/again": project / "sub",
    }  # fmt: skip
    for name, leads_to in links.items():
        (project / name).symlink_to(leads_to)
    packed = pack(target, [str(project)], EXCLUDES)
    assert names(target) == {"project/sub/model.py", "project/inside"}
    assert (target / "submitted/project/inside").read_text() == "good"
    found = dict(line.rpartition("/project/")[2].split(": ", 1) for line in packed.left_out)
    dotfile = "a dotfile; give it a --file of its own where the job needs it"
    assert found == {
        ".env": dotfile, "sub/.aws": dotfile, "pipe": "no regular file",
        "key": "a link out of the folder", "home": "a link out of the folder",
        "up": "a link out of the folder", "nowhere": "a link that leads nowhere",
        "circle": "a link that leads nowhere", "dotted": "a link to a dotfile",
        "sub/again": "a link to a folder",
    }  # fmt: skip


def test_what_is_named_itself_travels_and_what_was_packed_is_told(tmp_path, target):
    (tmp_path / ".env").write_text("meant")
    (tmp_path / "link").symlink_to(tmp_path / ".env")
    (tmp_path / "folder").mkdir()
    for number in range(12):
        (tmp_path / "folder" / f".{number:02d}").touch()
    named = [str(tmp_path / name) for name in (".env", "folder")]
    packed = pack(target, named, EXCLUDES)
    assert names(target) == {".env"}
    first, *rest = packed.lines()
    assert re.fullmatch(
        r"packed [\d,]+ files, [\d.]+ MiB; the largest is "
        r"chiasm/pipeline/pocket/model.safetensors, "
        r"[\d.]+ MiB",
        first,
    )
    assert len(rest) == 11 and rest[0].startswith(f"left out {tmp_path}/folder/.00: a dotfile")
    assert rest[-1] == "left out 2 more such names"


def test_a_link_brings_out_nothing_that_is_left_out(tmp_path, target):
    project = tmp_path / "project"
    for name in ("private/key.pem", "private/deep/key", "data.parquet", "conf/a.yaml", "b.yaml"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    links = ("private/key.pem", "private/deep/key", "data.parquet", "conf/a.yaml", "b.yaml")
    for number, leads_to in enumerate(links):
        (project / f"link{number}").symlink_to(leads_to)
    packed = pack(target, [str(project)], [*EXCLUDES, "private", "./conf/*"])
    assert names(target) == {"project/b.yaml", "project/link4"}
    assert packed.excluded == 3  # two folders' content, and the parquet file
    assert packed.left_out == [
        f"{project}/link{number}: a link to what is excluded" for number in range(4)
    ]


def test_a_name_that_a_job_cannot_hold_is_left_out_or_refused(tmp_path, target):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("good", "odd\udcff"):
        (folder / name).write_text("x")
    (folder / "link").symlink_to("odd\udcff")
    packed = pack(target, [str(folder)], EXCLUDES)
    assert names(target) == {"folder/good"}
    assert [line.rpartition(": ")[2] for line in packed.left_out] == [
        "a link to a name that is no UTF-8",
        "a name that is no UTF-8",
    ]
    with pytest.raises(UsageError, match=r"expected a name in UTF-8: .*, found other bytes"):
        pack(tmp_path, [str(folder / "odd\udcff")], EXCLUDES)
    with pytest.raises(UsageError, match=r"expected words in UTF-8: .*, found other bytes"):
        submit(["embed", "odd\udcff.tar"], "127.0.0.1:1")


SIGNED = "https://h/{1..2}.tar?X-Amz-Date=1&X-Amz-Signature=hush"


@pytest.mark.parametrize(
    ("word", "found"),
    [
        (SIGNED, "a query that may hold credentials (X-Amz-Date, X-Amz-Signature)"),
        (f"--image={SIGNED}", "a query that may hold credentials (X-Amz-Date, X-Amz-Signature)"),
        (f"encoder.name=hf:{SIGNED}", "credentials (X-Amz-Date, X-Amz-Signature)"),
        ("{http,HTTPS}://h/a.tar?hush", "a query that may hold credentials (***)"),
        ("s3://b/c,https://h/a b.tar?raw&sig=hush", "a query that may hold credentials (sig)"),
        ("--to=s3://AKIA:hush@b/c", "s3://***: {}credentials in it"),
        ("https://ann:hush@h/a.tar", "https://***: {}credentials in it"),
        ("https://hush@h/a.tar?raw", "https://***: {}credentials in it"),
        ("ray://ann:hush@head:1", "ray://***: {}credentials in it"),
    ],
)
def test_no_credentials_are_sent_with_a_command(word, found):
    with pytest.raises(UsageError) as refused:
        submit(["embed", word, "--to", "c"], "127.0.0.1:1")
    expected = found.format("expected a URL that may be kept and shown by the cluster, found ")
    assert expected in str(refused.value) and "hush" not in str(refused.value)


def test_a_command_is_sent_with_what_a_person_allows(monkeypatch):
    class Connected(Exception):
        pass

    def connect(address):
        raise Connected

    monkeypatch.setattr(sys.modules["chiasm.jobs.cluster.submit"], "connect", connect)
    plain = ["https://h/a.tar?download=1", "s3://b/a?b=c", "hf://datasets/a@b/c.tar", "a://b @c"]
    for command, allow in (
        (plain, False),
        ([SIGNED, "--allow-query"], False),
        ([SIGNED], True),
    ):
        with pytest.raises(Connected):
            submit(["embed", *command], "127.0.0.1:1", allow_query=allow)
    with pytest.raises(UsageError, match="credentials in it"):
        submit(["embed", "https://ann:hush@h/a.tar"], "127.0.0.1:1", allow_query=True)


@pytest.mark.parametrize(
    ("files", "message"),
    [(["none"], "--file none: expected a file or folder to upload with the job, found none"),
     (["/"], "found the whole file system"),
     (["x" * 300], "found File name too long"),
     (["a/pipe"], "found a device or a pipe"),
     (["a/x", "b/x"], "--file b/x: expected names that differ: the job finds them side by side, "
                      "found two called x")],
)  # fmt: skip
def test_what_cannot_be_packed_is_one_line(files, message, tmp_path, target, monkeypatch):
    for name in ("a/x", "b/x"):
        (tmp_path / name).mkdir(parents=True)
    os.mkfifo(tmp_path / "a" / "pipe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        pack(target, files, EXCLUDES)
    assert message in str(raised.value)


def test_a_job_that_is_too_large_is_refused_here_and_its_largest_files_named(tmp_path, target):
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(LIMIT_BYTES + 1)
    message = (
        r"expected at most 100 MiB.*found 11\d\.\d MiB or more, the largest large.bin \(100.0 MiB"
    )
    with pytest.raises(UsageError, match=message):
        pack(target, [str(large)], [])


def test_cluster_yaml_is_what_ray_accepts():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())))


def test_the_dashboard_of_cluster_yaml_is_open_to_its_own_machine_alone():
    (started,) = [
        command
        for command in yaml.safe_load((ROOT / "cluster.yaml").read_text())[
            "head_start_ray_commands"
        ]
        if "ray start" in command
    ]
    assert "--dashboard-host=127.0.0.1" in started
