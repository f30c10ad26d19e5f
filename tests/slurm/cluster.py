"""A real Slurm of two nodes on this machine, of Debian's packages, with a key, ports and folders of its own."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from getpass import getuser
from pathlib import Path
from typing import Any

from tests.ports import find_free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
DEADLINE_S = 600.0
"""After which something hangs, however busy the machine is."""
KILL_WAIT_S = 10
"""Between TERM and KILL, when a job is cancelled or queued again; sites leave it at 30."""
GRACE_S = 20
"""Between TERM and the end, when a job is pre-empted."""

CONFIGURATION = """\
ClusterName=prefopttest
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock
SlurmctldPort={ports[0]}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait={kill_wait}
MinJobAge=600
OverTimeLimit=0
ReturnToService=2
SlurmdTimeout=10
SlurmdParameters=config_overrides
NodeName=pf1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000 State=UNKNOWN
NodeName=pf2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing_program() -> str | None:
    """The first program that a cluster needs and that is not here."""
    return next((name for name in PROGRAMS if shutil.which(name) is None), None)


class Cluster:
    """A running cluster; a context manager.

    Attributes:
        root: Its files.
        environment: For processes that talk to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Cluster":
        for name in ("state", "log", "spool/pf1", "spool/pf2"):
            (self.root / name).mkdir(parents=True)
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        text = CONFIGURATION.format(
            user=getuser(), root=self.root, ports=find_free_ports(3), kill_wait=KILL_WAIT_S, grace=GRACE_S
        )
        (self.root / "slurm.conf").write_text(text)
        try:
            files = [
                f"--{name}={self.root}/munge.{name.split('-')[0]}" for name in ("key-file", "pid-file", "seed-file")
            ]
            files += [f"--socket={self.root}/munge.sock", f"--log-file={self.root}/log/munged.log"]
            self._start("munged", ["munged", "--foreground", "--force", "--num-threads=2", *files])
            self.until(lambda: (self.root / "munge.sock").exists())
            self._start("slurmctld", ["slurmctld", "-D", "-f", str(self.root / "slurm.conf")])
            for node in ("pf1", "pf2"):
                self.start_node(node)
            self.until(lambda: self.node_states() == {"pf1": "idle", "pf2": "idle"})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        if "slurmctld" in self._daemons:
            self.run("scancel", f"--user={getuser()}", check=False)
            with suppress(TimeoutError):
                self.until(lambda: not self.running(), KILL_WAIT_S + 10)
        for name in ("pf1", "pf2", "slurmctld", "munged"):
            self.stop(name)

    def start_node(self, name: str) -> None:
        """Starts the daemon of a node."""
        self._start(name, ["slurmd", "-D", "-f", str(self.root / "slurm.conf"), "-N", name])

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """Ends a daemon that this cluster started."""
        daemon = self._daemons.pop(name, None)
        if daemon is not None:
            daemon.send_signal(number)
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def lose_node(self, name: str, job: str) -> None:
        """Kills a node as a power cut does: its daemon, and all processes of the job that runs on it."""
        self.stop(name, signal.SIGKILL)
        for pid in self._processes_of(job):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes_of(self, job: str) -> set[int]:
        """Processes with the environment of a job of this cluster, and the daemons that started them."""
        marks = {f"SLURM_CONF={self.root}/slurm.conf".encode(), f"SLURM_JOB_ID={job}".encode()}
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                    parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                    is_daemon = Path(f"/proc/{parent}/comm").read_text().strip() == "slurmstepd"
                    found |= {int(folder.name)} | ({parent} if is_daemon else set())
        return found

    def run(self, *command: str, check: bool = True, timeout_s: float = DEADLINE_S, **environment: str) -> str:
        """Runs a command that talks to the cluster and returns what it prints."""
        done = subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        assert not check or done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if check else done.stdout + done.stderr

    def prefopt(self, command: str, *arguments: str, check: bool = True, **environment: str) -> str:
        """Runs a command of prefopt."""
        return self.run(sys.executable, "-m", f"prefopt.{command}", *arguments, check=check, **environment)

    def node_states(self) -> dict[str, str]:
        """Slurm's word for each node."""
        lines = self.run("sinfo", "-N", "-h", "-o", "%N %t", "-p", "main", check=False).splitlines()
        return dict(line.split()[:2] for line in lines if len(line.split()) == 2)

    def running(self) -> list[str]:
        """Ids of jobs that are neither waiting nor ended."""
        return self.run("squeue", "-h", "-t", "R,CG", "-o", "%i", check=False).split()

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says of a job, empty once it is forgotten."""
        text = self.run("scontrol", "show", "job", "-o", number, check=False)
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def set_time_limit(self, number: str, *, at_least_s: int) -> None:
        """Gives a job that long from now, and up to a minute more: Slurm counts in whole minutes."""
        hours, minutes, seconds = (int(part) for part in self.job(number)["RunTime"].split(":"))
        limit = -(-(hours * 3600 + minutes * 60 + seconds + at_least_s) // 60)
        self.run("scontrol", "update", f"JobId={number}", f"TimeLimit={limit}")

    def wait_for_job(self, number: str, *states: str) -> dict[str, str]:
        """Waits until a job is in one of some states; a wait after a requeue is cut short."""

        def look() -> dict[str, str] | None:
            job = self.job(number)
            if job.get("JobState") in states:
                return job
            if job.get("JobState") == "PENDING" and job.get("Reason") == "BeginTime":
                self.run("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)
            return None

        found: dict[str, str] = self.until(look)
        return found

    def until(self, look: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
        """Waits until something holds, and returns it."""
        deadline = time.monotonic() + timeout_s
        while not (found := look()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout_s} s\n{self.tell()}")
            time.sleep(0.2)
        return found

    def tell(self) -> str:
        """The queue and the ends of all logs, for a failing test."""
        logs = "".join(
            f"--- {path.name}\n{''.join(path.read_text(errors='replace').splitlines(keepends=True)[-15:])}"
            for path in sorted((self.root / "log").glob("*.log"))
        )
        return self.run("squeue", check=False) + logs if "slurmctld" in self._daemons else logs

    def _start(self, name: str, command: list[str]) -> None:
        log = (self.root / "log" / f"{name}.out").open("ab")
        self._daemons[name] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        log.close()
