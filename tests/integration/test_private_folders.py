"""A folder that this user may not enter is named, and the rest of what lies beside it is shown."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.fake_runs import write_fake_run

AS_ANYBODY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
"""Root without the right to ignore permissions."""


@pytest.fixture
def runs(tmp_path):
    root = tmp_path / "runs"
    for name in ("mine", "theirs"):
        write_fake_run(root / name)
    (root / "theirs").chmod(0)
    yield root
    (root / "theirs").chmod(0o700)


def call(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root ignores permissions")
    command = [*(AS_ANYBODY if os.geteuid() == 0 else []), sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "code", "theirs"),
    [
        ("prefopt.status", 1, "damaged    theirs  status.json cannot be read (Permission denied)"),
        ("prefopt.compare", 0, "theirs: the folder may not be entered"),
    ],
)
def test_one_closed_folder_does_not_hide_the_others(runs, module, code, theirs):
    ended = call(module, str(runs))
    assert (ended.returncode, ended.stderr) == (code, "")
    assert theirs in ended.stdout
    assert "mine" in ended.stdout
    assert "rm " not in ended.stdout, "nobody can remove what lies in it"


def test_a_closed_folder_is_named_among_what_could_not_be_uploaded(runs):
    ended = call("prefopt.sync", str(runs))
    assert (ended.returncode, ended.stderr) == (1, "")
    assert f"{runs / 'theirs'}: failed (the folder may not be entered)" in ended.stdout


def test_a_file_that_may_not_be_read_is_one_sentence(runs, tmp_path):
    data = tmp_path / "pairs.jsonl"
    data.write_text("{}\n")
    data.chmod(0)
    ended = call("prefopt.train", "model=hf", "model.path=x", "data=files", f"data.train={data}", "logger=none")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert str(data) in ended.stderr
    assert "Permission denied" in ended.stderr
