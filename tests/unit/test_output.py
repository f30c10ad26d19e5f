"""What cannot be printed costs the words and not the work."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.process import output
from prefopt.process.output import OUTPUT, keep_in, lasting_output

PRINTS = """
import sys
from pathlib import Path
from prefopt.distributed.entry import run_entry
from prefopt.process.console import build_console
from prefopt.process.output import keep_in

def main(argv):
    run, console = Path(argv[0]), build_console()
    console.print("first")
    sys.stdin.readline()
    console.print("second")
    console.print("third")
    run.mkdir()
    keep_in(run)
    console.print("fourth")
    (run / "done").touch()

run_entry(main)
"""


@pytest.fixture(autouse=True)
def no_folder(monkeypatch):
    monkeypatch.setattr(output, "_folder", None)


def start(run: Path, stdout: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PRINTS, str(run)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE)


def test_a_command_whose_reader_goes_away_goes_on_and_the_rest_is_in_the_runs_folder(tmp_path):
    run = tmp_path / "run"
    process = start(run, subprocess.PIPE)
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate(b"\n")
    assert process.returncode == 0
    assert (run / "done").exists()
    why, *rest = (run / OUTPUT).read_text().splitlines()
    assert why.endswith("standard output cannot be written any more (Broken pipe); the command goes on")
    assert rest == ["second", "third", "fourth"]
    assert said.decode() == f"output that cannot be written any more goes to {run / OUTPUT}\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_standard_output_does_not_end_a_command(tmp_path):
    run = tmp_path / "run"
    with open("/dev/full", "w") as full:
        process = start(run, full.fileno())
        process.communicate(b"\n")
    assert process.returncode == 0
    why, *rest = (run / OUTPUT).read_text().splitlines()
    assert "(No space left on device)" in why
    assert rest == ["first", "second", "third", "fourth"]


def test_without_a_run_what_cannot_be_printed_is_dropped_and_nothing_fails(monkeypatch):
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    before = Broken()
    monkeypatch.setattr(sys, "stdout", before)
    with lasting_output():
        for _ in range(3 * output.REMEMBERED_CHARACTERS // 100):
            print("x" * 100, flush=True)
    assert sys.stdout is before


def test_a_stream_that_works_is_left_as_it_is(capsys, tmp_path):
    with lasting_output():
        keep_in(tmp_path)
        print("a", flush=True)
        print("b", file=sys.stderr)
    assert capsys.readouterr() == ("a\n", "b\n")
    assert list(tmp_path.iterdir()) == []
