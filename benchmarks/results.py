"""Where measurements are kept: one JSON file per benchmark and machine, with what it takes to read and repeat it."""

import json
import os
import platform
import shlex
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_results(
    benchmark: str,
    content: dict[str, Any],
    *,
    packages: tuple[str, ...],
    argv: list[str],
    gpu: str | None = None,
    module: str | None = None,
) -> Path:
    """Writes `results/<machine>/<benchmark>.json` and returns its path.

    Args:
        benchmark: Name of the file, and of the module below `benchmarks` that measured.
        content: Settings and results of the measurement.
        packages: Distributions whose versions matter to it.
        argv: Arguments of the command; of paths only the last part is kept.
        gpu: Name of the CUDA device that was measured; None: the CPU.
        module: The module that measured, if it lies elsewhere.
    """
    machine = name_machine(gpu)
    path = RESULTS / machine / f"{benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    arguments = [Path(argument).name if Path(argument).exists() else argument for argument in argv]
    header = {
        "machine": machine,
        "cpu": _cpu(),
        "gpu": gpu,
        "date": time.strftime("%Y-%m-%d"),
        "command": shlex.join(["python", "-m", module or f"benchmarks.{benchmark}", *arguments]),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "tokenizers_parallelism": os.environ.get("TOKENIZERS_PARALLELISM", "default"),
    }
    path.write_text(json.dumps({**header, **content}, indent=2) + "\n", encoding="utf-8")
    return path


def name_machine(gpu: str | None) -> str:
    """Folder of a machine's results: its CPU architecture and number of CPUs, or its GPU."""
    if gpu is None:
        return f"{platform.machine()}-{os.cpu_count()}cpu"
    return gpu.lower().replace(" ", "-")


def _cpu() -> str:
    """Name of the processor, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
