"""What C libraries print reaches no terminal and no pipe; what Python prints still does."""

import io
import json
import random
import subprocess
import sys
import tarfile

import pytest
from conftest import environment, jpeg
from PIL import Image

from chiasm.index.build import build_index

SAID = "ZIPDecode"  # how libtiff begins what it says of the picture below


@pytest.fixture(scope="module")
def loud() -> bytes:
    """A TIFF whose deflated pixels are damaged, of which libtiff complains on descriptor 2."""
    out = io.BytesIO()
    image = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 60).convert("RGB")
    image.save(out, "TIFF", compression="tiff_adobe_deflate")
    data = bytearray(out.getvalue())
    data[20:40] = b"\xff" * 20
    return bytes(data)


def run(program: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        **options,
    )


DECODE = """
import os, pathlib, sys
from chiasm.pipeline.images.decode import DecodeSettings, Undecodable, decode
from chiasm.jobs.console.c_output import divert_c_output
if sys.argv[2]:
    divert_c_output(pathlib.Path(sys.argv[2]))
try:
    decode(pathlib.Path(sys.argv[1]).read_bytes(), DecodeSettings(), None)
except Undecodable as lost:
    print(lost.reason)
os.write(1, b"from C\\n")
"""


def test_what_libtiff_prints_goes_to_the_log(loud, tmp_path):
    (tmp_path / "a.tif").write_bytes(loud)
    log = tmp_path / "c.log"
    open_mouthed = run(DECODE, tmp_path / "a.tif", "")
    assert SAID in open_mouthed.stderr and "from C\n" in open_mouthed.stdout
    ran = run(DECODE, tmp_path / "a.tif", log)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "corrupt\n", "")
    assert SAID in log.read_text() and log.read_text().endswith("from C\n")


def test_c_libraries_write_to_the_log_and_python_to_the_terminal(tmp_path):
    program = """
import os, pathlib, subprocess, sys
from chiasm.jobs.console.c_output import divert_c_output
log = pathlib.Path(sys.argv[1], "new", "worker.log")
assert divert_c_output(log) == divert_c_output(log.with_name("other")) == log
for number in (1, 2):
    os.write(number, b"from C\\n")
subprocess.run([sys.executable, "-c", "print('from a child')"])
print("from Python")
print("from Python", file=sys.stderr)
raise SystemExit("bye")
"""
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout) == (1, "from Python\n")
    assert done.stderr == "from Python\nbye\n"
    log = tmp_path / "new" / "worker.log"
    assert log.read_text() == "from C\nfrom C\nfrom a child\n"


def test_where_no_log_can_be_written_nothing_is(loud, tmp_path):
    (tmp_path / "a.tif").write_bytes(loud)
    (tmp_path / "file").touch()
    ran = run(DECODE, tmp_path / "a.tif", tmp_path / "file" / "c.log")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "corrupt\n", "")


def test_a_log_does_not_grow_for_ever(tmp_path):
    program = """
import os, pathlib, sys
from chiasm.jobs.console.c_output import divert_c_output
divert_c_output(pathlib.Path(sys.argv[1]))
os.write(2, b"new")
"""
    log = tmp_path / "c.log"
    for size, expected in ((1000, 1003), (5 << 20, 3)):
        log.write_bytes(bytes(size))
        assert run(program, log).returncode == 0
        assert log.stat().st_size == expected


def test_streams_that_are_closed_or_elsewhere_stay_as_they_are(tmp_path):
    program = """
import io, os, pathlib, sys
from chiasm.jobs.console.c_output import divert_c_output
sys.stdout = io.StringIO()
divert_c_output(pathlib.Path(sys.argv[1]))
print("kept")
assert sys.stdout.getvalue() == "kept\\n" and sys.stderr is None
"""
    closed = [sys.executable, "-c", program, str(tmp_path / "c.log")]
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *closed]
    assert subprocess.run(command, env=environment(), timeout=120).returncode == 0


def test_a_run_and_a_search_print_only_their_own(loud, tmp_path, chiasm, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("a.tif", loud), ("b.jpg", jpeg(random.Random(0)))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    collection = tmp_path / "c"
    embedding = ("embed", tmp_path / "a.tar", "--to", collection, "--encoder", "fake")
    done = chiasm(*embedding, "--json", "--max-loss", 1)
    assert done.returncode == 0 and SAID not in done.stderr
    assert json.loads(done.stdout)["reasons"] == {"corrupt": 1}
    build_index(str(collection))
    (tmp_path / "query.tif").write_bytes(loud)
    searched = chiasm("search", collection, "--image", tmp_path / "query.tif")
    assert searched.returncode != 0 and searched.stdout == ""
    [line] = searched.stderr.splitlines()
    assert line.startswith("chiasm: ") and "corrupt" in line
    assert SAID in (tmp_path / "cache" / "chiasm" / "c-output.log").read_text()
