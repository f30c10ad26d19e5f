"""Faults in the processes of a job: Python imports this by itself where a job's environment file names the folder.

FAULT_SLEEP_S: seconds that every optimizer step takes longer. FAULT_EXIT_AFTER: the step after which the process dies.
FAULT_FULL_DISK: a node whose temporary folder has no space left.
"""

import os
import shutil
import sys
import tempfile
import threading
import time

MODULE = "prefopt.trainers.durable"


def _inject() -> None:
    while not hasattr(sys.modules.get(MODULE), "OnThisRank"):  # the last thing that the module defines
        time.sleep(0.01)
    trainer = sys.modules[MODULE].DurableTrainer
    end_step = trainer.end_step

    def slow_end_step(self, control):
        end_step(self, control)
        time.sleep(float(os.environ.get("FAULT_SLEEP_S", "0")))
        if str(self.state.global_step) == os.environ.get("FAULT_EXIT_AFTER"):
            os._exit(3)

    trainer.end_step = slow_end_step


if "FAULT_SLEEP_S" in os.environ or "FAULT_EXIT_AFTER" in os.environ:
    threading.Thread(target=_inject, daemon=True).start()

if os.environ.get("FAULT_FULL_DISK") == os.environ.get("SLURMD_NODENAME", "none"):
    ask_disk = shutil.disk_usage
    full = shutil._ntuple_diskusage(1 << 40, 1 << 40, 0)
    shutil.disk_usage = lambda path: full if str(path) == tempfile.gettempdir() else ask_disk(path)
