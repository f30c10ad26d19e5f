"""Thousands of damaged data files: each is read, or refused in a sentence; none ends in a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

FILES = 10_000


def test_any_damaged_file_is_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.fuzz.reading",
        "--files",
        str(FILES),
        "--keep",
        str(tmp_path),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert "failed" not in counts, done.stderr[-2000:]
    assert counts["read"] + counts["refused"] == FILES
    assert min(counts["read"], counts["refused"]) > FILES / 10  # else the files would try one thing alone
    assert counts["peak_mib"] < 1536
