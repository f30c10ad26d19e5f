"""A stop that is asked for while the data are prepared: nothing is trained yet, so the run ends at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

NUM_ROWS = 150_000
"""So many that preparing them takes far longer than the test waits."""


def test_a_run_that_prepares_its_data_stops_at_once(tmp_path: Path) -> None:
    words = " ".join(f"word{number}" for number in range(60))
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(NUM_ROWS):
            row = {"prompt": f"What is {number}?", "chosen": f"{number} {words}", "rejected": f"Not {number} {words}"}
            file.write(json.dumps(row) + "\n")
    environment = {**os.environ, "PREFOPT_CACHE": str(tmp_path / "cache")}
    overrides = ["data=files", f"data.train={tmp_path / 'rows.jsonl'}", "logger=none", f"run.root={tmp_path / 'runs'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prefopt.train", *overrides],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()  # the run's name, before its data are read
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    rest = process.communicate(timeout=120)[0]
    assert process.returncode == 75, first + rest
    assert "stopped on request (SIGTERM); the same command goes on" in rest
    assert "Traceback" not in rest
    assert time.monotonic() - asked < 10
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))
