"""Faults in processes that others start: Python imports this by itself where PYTHONPATH names the folder.

FAULT_HOLD_AT: the step at whose end the first attempt waits until it is asked to stop, so that whoever does the asking
need not hurry; FAULT_HOLD_TASK: only in this task of an array. FAULT_EXIT_AFTER: the step after which the process
dies. FAULT_FULL_DISK: a node whose temporary folder has no space left.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import time

MODULE = "prefopt.training.durable"


class _Finder:
    """Changes `MODULE` as it is imported."""

    def find_spec(self, name, path=None, target=None):
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_change(module):
            execute(module)
            _change(module.DurableTrainer)

        spec.loader.exec_module = execute_and_change
        return spec


def _change(trainer):
    end_step = trainer.end_step

    def changed_end_step(self, control):
        step = str(self.state.global_step)
        while step == os.environ.get("FAULT_HOLD_AT") and _is_held() and self.run.stop.requested is None:
            time.sleep(0.02)
        end_step(self, control)
        if step == os.environ.get("FAULT_EXIT_AFTER"):
            os._exit(3)

    trainer.end_step = changed_end_step


def _is_held():
    is_first = os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
    return is_first and os.environ.get("FAULT_HOLD_TASK") in (None, os.environ.get("SLURM_ARRAY_TASK_ID"))


if "FAULT_HOLD_AT" in os.environ or "FAULT_EXIT_AFTER" in os.environ:
    sys.meta_path.insert(0, _Finder())

if os.environ.get("FAULT_FULL_DISK") == os.environ.get("SLURMD_NODENAME", "none"):
    ask_disk = shutil.disk_usage
    full = shutil._ntuple_diskusage(1 << 40, 1 << 40, 0)
    shutil.disk_usage = lambda path: full if str(path) == tempfile.gettempdir() else ask_disk(path)
