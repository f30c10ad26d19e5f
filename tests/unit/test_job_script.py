"""The batch script: its #SBATCH lines, and what bash does with it, with stubs in place of Slurm and Python."""

import re
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from prefopt.cluster.script import MAX_BAD_NODES, render
from prefopt.config.cluster import SUBMIT, ClusterConfig
from prefopt.process.errors import UserError
from prefopt.process.paths import shipped
from prefopt.sweeps.jobs import Job, Task, write_tasks

PROFILES = sorted(path.stem for path in (shipped("conf") / "cluster").glob("*.yaml") if path.stem != "local")
HOSTILE = [
    "plain=1",
    "data.train='a b.jsonl'",
    'run.name="say"',
    "it's=$(touch pwned)",
    "x=`touch pwned`",
    "x=1; touch pwned",
    "x=$HOME ${PATH} $0 !! ~ * ? [a-z]",
    "x=\\ \\\\ \\n \\",
    "x='\"'\"'",
    "x=a\tb\rc",
    "x=größe→∞",
    "x=--not-an-option",
    "{{ x }} {% y %} {# z #}",
    "x=#no comment",
    "",
    " leading and trailing ",
    "x=\x1b[31m",
]
DEADLINE_S = 300.0

PYTHON = """\
#!/bin/bash
record python "$@"
case "$2 ${3-}" in
"prefopt.cluster.preflight look") exit "${STUB_LOOK-0}" ;;
"prefopt.cluster.preflight judge") echo "${STUB_BAD-}"; exit "${STUB_JUDGE-0}" ;;
"prefopt.sweeps.search ask") printf '%s\\n' "${STUB_TASK-}" >"$5.asked"; exit "${STUB_ASK-0}" ;;
"prefopt.cluster.attempts "*) echo "${STUB_NEXT-done}"; exit 0 ;;
"prefopt.sweeps.search tell") exit 0 ;;
esac
if [ -n "${STUB_WAIT-}" ]; then
    trap 'sleep_a_bit; touch "$RECORD/saved"; exit 75' USR1
    touch "$RECORD/running"
    while :; do sleep_a_bit; done
fi
exit "${STUB_CODE-0}"
"""
SRUN = """\
#!/bin/bash
record srun "$@"
while [[ ${1-} == --* ]]; do shift; done
export SLURM_NODEID=0
trap 'record srun-got-USR1; kill -USR1 "$child"; touch "$RECORD/told"' USR1
"$@" &
child=$!
while kill -0 "$child" 2>/dev/null; do wait "$child"; done # a signal ends a wait
wait "$child"
"""
SCONTROL = """\
#!/bin/bash
record scontrol "$@"
case "$*" in
"show hostnames "*) printf 'node1\\nnode2\\n' ;;
"show node "*) echo "NodeName=$4 Arch=x86_64 NodeAddr=10.0.0.1 NodeHostName=$4 Version=22" ;;
"show job "*) echo "JobId=7 JobState=PENDING ExcNodeList=${STUB_EXCLUDED-(null)} NodeList=x NumNodes=1" ;;
esac
"""
APPTAINER = """\
#!/bin/bash
record apptainer "$@"
while [ "$1" != python3 ]; do shift; done
shift
exec "$STUB_PYTHON" "$@"
"""
SQUEUE = """\
#!/bin/bash
record squeue "$@"
echo "${STUB_STATE-RUNNING}"
"""
RECORD = """\
#!/bin/bash
{ printf '%s\\0' "$@" "PET_NODE_RANK=${PET_NODE_RANK-}" "MASTER=${MASTER_ADDR-}:${MASTER_PORT-}" "SEEN=${SEEN-}"; } \\
    >"$RECORD/$(date +%s%N)-$BASHPID"
"""


@dataclass(frozen=True)
class Call:
    """A program that the script has started.

    Attributes:
        argv: Its name and arguments.
        environment: What it saw of a few variables.
    """

    argv: list[str]
    environment: dict[str, str]


class Stubs:
    """Slurm's commands and Python, which note what they are called with, and a `sleep` that does not.

    Attributes:
        folder: What they note, and what a job leaves in its working directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python of the cluster"
        self.record = folder / "record"
        self.workdir = folder / "work dir"
        for path in (folder / "bin", self.record, self.workdir):
            path.mkdir()
        programs = {
            self.python.name: PYTHON, "srun": SRUN, "scontrol": SCONTROL, "squeue": SQUEUE, "apptainer": APPTAINER,
            "record": RECORD, "sleep": "#!/bin/bash\n", "sleep_a_bit": "#!/bin/bash\nexec /bin/sleep 0.2\n",
        }  # fmt: skip
        for name, text in programs.items():
            path = folder / "bin" / name
            path.write_text(text)
            path.chmod(0o755)

    def start(self, job: Job, cluster: ClusterConfig, **environment: str) -> "subprocess.Popen[str]":
        """Starts a job's script as slurmd would."""
        script = self.folder / "script.sh"
        script.write_text(render(job, cluster, python=str(self.python), workdir=self.workdir), encoding="utf-8")
        if job.is_array:
            write_tasks(job)
        slurm = {"SLURM_JOB_ID": "40007", "SLURM_JOB_NODELIST": "node[1-2]"}
        if job.is_array:
            slurm |= {"SLURM_ARRAY_JOB_ID": "40000", "SLURM_ARRAY_TASK_ID": str(min(job.tasks))}
        path = {"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        own = {"RECORD": str(self.record), "STUB_PYTHON": str(self.python)}
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen(
                ["bash", str(script)], env={**path, **own, **slurm, **environment}, stdout=log, stderr=log, text=True
            )

    def run(self, job: Job, cluster: ClusterConfig, **environment: str) -> int:
        """Runs a job's script to its end and returns its exit code."""
        return self.start(job, cluster, **environment).wait(DEADLINE_S)

    def calls(self, *start: str) -> list[Call]:
        """The calls whose arguments begin with these, in their order."""
        found = []
        for path in sorted(self.record.glob("*-*")):
            *argv, rank, master, seen = path.read_bytes().decode().split("\0")[:-1]
            if argv[: len(start)] == list(start):
                found.append(Call(argv, dict(item.split("=", 1) for item in (rank, master, seen))))
        return found

    def ran(self, module: str) -> list[str]:
        """What a module got, which ran once, in one process."""
        (call,) = [each for each in self.calls("python") if each.argv[1:3] == ["-m", module]]
        return call.argv[3:]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not (self.record / name).exists():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    return Stubs(tmp_path)


def cluster_of(*overrides: str) -> ClusterConfig:
    chosen = [] if any(override.startswith("cluster=") for override in overrides) else ["cluster=slurm_cpu"]
    cluster: ClusterConfig = SUBMIT.compose([*chosen, *overrides]).build().cluster
    return cluster


BARE = cluster_of("cluster.preflight=false")


def single(folder: Path, *overrides: str, **rest) -> Job:
    run = folder / "runs" / "voice"
    return Job("voice", run, "prefopt.train", {0: Task(run, overrides or ("run.seed=1",))}, **rest)


def array(folder: Path, *overrides: str, indices=(0, 1), **rest) -> Job:
    sweep = folder / "runs" / "sweep"
    tasks = {index: Task(sweep / f"point-{index}", overrides or (f"run.seed={index}",)) for index in indices}
    return Job("sweep", sweep, "prefopt.train", tasks, is_array=True, **rest)


def options(job: Job, *overrides: str) -> list[str]:
    """The #SBATCH lines."""
    script = render(job, cluster_of(*overrides))
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


JOBS = {
    "single": single,
    "array": array,
    "search": lambda folder: array(folder, is_search=True),
    "reference": lambda folder: replace(single(folder), module="prefopt.prepare"),
    "later": lambda folder: single(folder, after=["12", "13"]),
}
VARIANTS = {
    "plain": [],
    "no preflight": ["cluster.preflight=false"],
    "container": ['cluster.container="/shared/it\'s.sif"', "cluster.container_options=['--nv','--bind=/a b']"],
    "environment": ["cluster.environment='/shared/my environment.sh'"],
    "launched": ["cluster.ranks_per_node=2"],
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("profile", PROFILES)
def test_bash_understands_the_script_of_every_profile(tmp_path, profile, kind, variant):
    script = render(JOBS[kind](tmp_path), cluster_of(f"cluster={profile}", *VARIANTS[variant]))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    head = script.split("set -u")[0].splitlines()
    assert head[0] == "#!/bin/bash"
    assert all(line.startswith("#") or not line for line in head), "sbatch stops reading at the first command"


@pytest.mark.parametrize("kind", ["single", "array"])
def test_whatever_overrides_hold_arrives_verbatim_and_nothing_of_it_is_executed(stubs, kind):
    job = JOBS[kind](stubs.folder)
    job = replace(job, tasks={index: replace(task, overrides=HOSTILE) for index, task in job.tasks.items()})
    assert stubs.run(job, BARE) == 0, stubs.log()
    assert stubs.ran("prefopt.train") == HOSTILE
    assert not list(stubs.folder.rglob("pwned"))


@pytest.mark.parametrize("kind", ["single", "array"])
def test_overrides_arrive_verbatim_through_torchrun_on_several_nodes(stubs, kind):
    job = JOBS[kind](stubs.folder)
    job = replace(job, tasks={index: replace(task, overrides=HOSTILE) for index, task in job.tasks.items()})
    two_nodes = cluster_of("cluster=slurm_2x8", "cluster.preflight=false")
    assert stubs.run(job, two_nodes, SLURM_RESTART_COUNT="2") == 0, stubs.log()
    (call,) = [each for each in stubs.calls("python") if "torch.distributed.run" in each.argv]
    place = call.argv.index("prefopt.train")
    assert call.argv[place - 1 :] == ["-m", "prefopt.train", *HOSTILE]
    assert call.environment == {"PET_NODE_RANK": "0", "MASTER": "10.0.0.1:20007", "SEEN": ""}
    assert {"--nnodes=2", "--nproc_per_node=8", "--master_addr=10.0.0.1", "--master_port=20007"} <= set(call.argv)
    assert not list(stubs.folder.rglob("pwned"))


def test_whatever_paths_hold_is_one_path_and_nothing_of_it_is_executed(stubs):
    folder = stubs.folder / "it's $(touch pwned) `touch pwned`; touch pwned & 50%j #x"
    environment = folder / "our environment's.sh"
    folder.mkdir()
    environment.write_text("export SEEN='by its file'\n")
    run = folder / "runs" / "voice=1"
    job = Job("voice=1; touch pwned", run, "prefopt.train", {0: Task(run, ["run.seed=1"])})
    assert stubs.run(job, replace(BARE, environment=str(environment))) == 0, stubs.log()
    assert stubs.ran("prefopt.cluster.attempts")[0] == str(run)
    assert (run / "slurm" / "40007-0").is_dir()
    assert [call.environment["SEEN"] for call in stubs.calls("srun")] == ["by its file"]
    assert not list(stubs.folder.rglob("pwned"))


def test_a_container_gets_its_options_and_runs_the_same_modules(stubs):
    cluster = replace(BARE, container="/shared/it's.sif", container_options=["--nv", "--bind=/a b:/c"])
    assert stubs.run(single(stubs.folder), cluster) == 0, stubs.log()
    prefix = ["apptainer", "exec", "--nv", "--bind=/a b:/c", "/shared/it's.sif", "python3", "-m"]
    called = [call.argv for call in stubs.calls("apptainer")]
    assert [argv[: len(prefix)] for argv in called] == [prefix, prefix]
    assert [argv[len(prefix)] for argv in called] == ["prefopt.train", "prefopt.cluster.attempts"]


def test_an_environment_file_that_fails_ends_the_job_before_its_ranks(stubs):
    (stubs.folder / "environment.sh").write_text("module load nothing-like-this\n")
    cluster = replace(BARE, environment=str(stubs.folder / "environment.sh"))
    assert stubs.run(single(stubs.folder), cluster) == 1
    assert not stubs.calls("srun")
    assert "module" in stubs.log()


def test_the_environment_file_sees_unset_variables_as_errors(stubs):
    (stubs.folder / "environment.sh").write_text("export SEEN=$NOBODY_SET_THIS\n")
    cluster = replace(BARE, environment=str(stubs.folder / "environment.sh"))
    assert stubs.run(single(stubs.folder), cluster) != 0
    assert "NOBODY_SET_THIS" in stubs.log()


@pytest.mark.parametrize(
    ("following", "code", "expected", "requeues"),
    [
        ("done", 0, 0, False),
        ("done", 1, 0, False),
        ("stop", 2, 2, False),
        ("stop", 0, 1, False),
        ("again", 75, 75, True),
        ("again", 0, 1, True),
        ("", 3, 3, False),
    ],
)
def test_what_the_run_says_of_itself_decides_what_the_job_does(stubs, following, code, expected, requeues):
    assert stubs.run(single(stubs.folder), BARE, STUB_NEXT=following, STUB_CODE=str(code)) == expected
    attempts = stubs.ran("prefopt.cluster.attempts")
    assert attempts[1:3] == ["--job=40007", f"--code={code}"]
    assert [call.argv[2:] for call in stubs.calls("scontrol", "requeue")] == ([["40007"]] if requeues else [])


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "PENDING", ""])
def test_a_job_that_is_cancelled_or_queued_already_is_not_queued_again(stubs, state):
    assert stubs.run(single(stubs.folder), BARE, STUB_NEXT="again", STUB_CODE="75", STUB_STATE=state) == 75
    assert not stubs.calls("scontrol", "requeue")


def test_a_task_of_an_array_is_queued_again_alone_under_its_own_id(stubs):
    job = array(stubs.folder, indices=(3, 4))
    assert stubs.run(job, BARE, STUB_NEXT="again", STUB_CODE="75", SLURM_RESTART_COUNT="1") == 75
    assert stubs.ran("prefopt.train") == ["run.seed=3"]
    run = job.tasks[3].run
    expected = [str(run), "--job=40000_3", "--code=75", f"--attempt={run / 'slurm' / '40000_3-1'}"]
    assert stubs.ran("prefopt.cluster.attempts")[:4] == expected
    assert [call.argv for call in stubs.calls("scontrol", "requeue")] == [["scontrol", "requeue", "40000_3"]]
    assert stubs.calls("squeue")[0].argv[2] == "--jobs=40000_3"


def test_a_task_without_its_file_starts_nothing(stubs):
    job = array(stubs.folder, indices=(3,))
    assert stubs.run(job, BARE, SLURM_ARRAY_TASK_ID="9") != 0
    assert not stubs.calls("srun")


def test_a_task_of_a_search_asks_what_to_run_and_tells_how_it_ended(stubs):
    job = array(stubs.folder, indices=(5,), is_search=True)
    assert stubs.run(job, BARE, STUB_NEXT="stop", STUB_CODE="3") == 3
    called = [call.argv[2:] for call in stubs.calls("python")]
    assert called[0] == ["prefopt.sweeps.search", "ask", str(job.folder), "5"]
    assert [argv[0] for argv in called[1:3]] == ["prefopt.train", "prefopt.cluster.attempts"]
    assert called[3] == ["prefopt.sweeps.search", "tell", str(job.folder), "5", "--next=stop"]


def test_a_task_of_a_search_that_has_nothing_to_run_ends_with_the_code_of_the_question(stubs):
    job = array(stubs.folder, indices=(5,), is_search=True)
    assert stubs.run(job, BARE, STUB_ASK="2") == 2
    assert not stubs.calls("srun")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_script_reaches_the_ranks_as_usr1_and_their_end_is_waited_for(stubs, number):
    script = stubs.start(single(stubs.folder), BARE, STUB_WAIT="yes", STUB_NEXT="again")
    stubs.wait_for("running")
    script.send_signal(number)
    stubs.wait_for("told")
    script.send_signal(number)  # as srun and torchrun both pass it on
    assert script.wait(DEADLINE_S) == 75, stubs.log()
    assert (stubs.record / "saved").exists()
    assert stubs.calls("srun-got-USR1")
    assert stubs.ran("prefopt.cluster.attempts")[2] == "--code=75"
    order = [call.argv[0] for call in stubs.calls()]
    assert order.index("srun-got-USR1") < len(order) - order[::-1].index("python") - 1, "the decision comes last"
    assert stubs.calls("scontrol", "requeue")


PREFLIGHT = cluster_of("cluster.min_free_gib=0.5")


def test_a_fit_allocation_is_looked_at_once_per_node_before_the_ranks_start(stubs):
    assert stubs.run(single(stubs.folder), PREFLIGHT) == 0, stubs.log()
    modules = [call.argv[2] for call in stubs.calls("python")]
    look = "prefopt.cluster.preflight"
    assert modules == [look, look, "prefopt.train", "prefopt.cluster.attempts"]
    folder = stubs.folder / "runs" / "voice" / "slurm" / "40007-0"
    assert stubs.calls("python")[0].argv[3:] == ["look", str(folder), "--nodes=1", "--gpus=0", "--min-free-gib=0.5"]


BAD = {"STUB_LOOK": "1", "STUB_JUDGE": "1", "STUB_NEXT": "again"}


def test_a_bad_node_is_left_out_beside_those_that_were_left_out_before(stubs):
    assert stubs.run(single(stubs.folder), PREFLIGHT, **BAD, STUB_BAD="n3,n4", STUB_EXCLUDED="n[7-9],n1") == 1
    called = [call.argv[1:] for call in stubs.calls("scontrol") if call.argv[1] in ("requeue", "update")]
    assert called == [["requeue", "40007"], ["update", "JobId=40007", "ExcNodeList=n[7-9],n1,n3,n4"]]
    assert not [call for call in stubs.calls("python") if "prefopt.train" in call.argv]


def test_a_first_bad_node_is_left_out_alone(stubs):
    assert stubs.run(single(stubs.folder), PREFLIGHT, **BAD, STUB_BAD="n3") == 1
    assert [call.argv[3] for call in stubs.calls("scontrol", "update")] == ["ExcNodeList=n3"]


def test_bad_nodes_are_left_out_a_few_times_in_a_row_however_often_the_job_was_queued_again_before(stubs):
    job = single(stubs.folder)
    for restart in range(MAX_BAD_NODES + 1):
        count = {"SLURM_RESTART_COUNT": str(50 + restart)}
        assert stubs.run(job, PREFLIGHT, **BAD, STUB_BAD="n3", **count) == 1
    assert len(stubs.calls("scontrol", "requeue")) == MAX_BAD_NODES
    assert stubs.run(job, PREFLIGHT, SLURM_RESTART_COUNT="60") == 0
    assert stubs.run(job, PREFLIGHT, **BAD, STUB_BAD="n3", SLURM_RESTART_COUNT="61") == 1
    assert len(stubs.calls("scontrol", "requeue")) == MAX_BAD_NODES + 1


def test_what_is_no_nodes_fault_ends_the_job_and_does_not_queue_it_again(stubs):
    assert stubs.run(single(stubs.folder), PREFLIGHT, **BAD) == 1
    assert not stubs.calls("scontrol", "requeue")


def test_a_job_that_is_pre_empted_during_the_look_at_its_nodes_is_queued_again(stubs):
    assert stubs.run(single(stubs.folder), PREFLIGHT, **{**BAD, "STUB_LOOK": "143"}) == 1
    assert stubs.calls("scontrol", "requeue")
    assert not stubs.calls("scontrol", "update")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("cluster.partition='gpu,long'", "--partition=gpu,long"),
        ("cluster.account=nlp", "--account=nlp"),
        ("cluster.qos=high", "--qos=high"),
        ("cluster.constraint='h100&nvlink'", "--constraint=h100&nvlink"),
        ("cluster.memory=64G", "--mem=64G"),
        ("cluster.exclude='n[1-3],n7'", "--exclude=n[1-3],n7"),
        ("cluster.time='2-00:00:00'", "--time=2-00:00:00"),
        ("cluster.nodes=3", "--nodes=3"),
        ("cluster.cpus_per_node=12", "--cpus-per-task=12"),
        ("cluster.ranks_per_node=4", "--cpus-per-task=4"),
        ("cluster.gpus_per_node=2", "--gres=gpu:2"),
        ("cluster.gpus_per_node=2", "--cpus-per-task=16"),
        ("cluster.gres=gpu:h100:8", "--gres=gpu:h100:8"),
        ("cluster.margin_s=600", "--signal=B:USR1@600"),
        ("cluster.options=['--reservation=x','--exclusive']", "--reservation=x"),
        ("cluster.options=['--reservation=x','--exclusive']", "--exclusive"),
    ],
)
def test_a_setting_is_a_line_for_sbatch_and_unset_it_is_none(tmp_path, setting, expected):
    assert expected in options(single(tmp_path), setting)
    assert expected not in options(single(tmp_path))


def test_a_job_with_no_setting_has_these_lines_and_no_others(tmp_path):
    assert options(single(tmp_path)) == [
        "--job-name=voice",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
        "--time=02:00:00",
        "--signal=B:USR1@300",
        "--open-mode=append",
        f"--output={tmp_path}/runs/voice/slurm/train-%j.log",
        "--requeue",
    ]


@pytest.mark.parametrize(
    ("indices", "parallel", "expected"),
    [
        ((0,), None, "--array=0"),
        (range(5), None, "--array=0-4"),
        ((7, 0, 1, 2, 3, 4), 2, "--array=0-4,7%2"),
        ((1, 3, 5, 6), 1, "--array=1,3,5-6%1"),
    ],
)
def test_the_indices_of_an_array_are_ranges_with_its_throttle(tmp_path, indices, parallel, expected):
    lines = options(array(tmp_path, indices=indices, parallel=parallel))
    assert expected in lines
    assert f"--output={tmp_path}/runs/sweep/slurm/train-%A_%a.log" in lines


def test_a_job_waits_for_the_success_of_others_and_leaves_the_queue_if_one_fails(tmp_path):
    lines = options(single(tmp_path, after=["12"]).waiting().with_ids(["20", "21"]))
    assert "--dependency=afterok:12:21" in lines
    assert "--kill-on-invalid-dep=yes" in lines
    alone = options(single(tmp_path))
    assert not [line for line in alone if line.startswith(("--dependency", "--kill-on-invalid-dep"))]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("plain", "{}/plain/runs/voice/slurm/train-%j.log"),
        ("a b", '"{}/a b/runs/voice/slurm/train-%j.log"'),
        ("it's", '"{}/it\'s/runs/voice/slurm/train-%j.log"'),
        ("50%j", "{}/50%%j/runs/voice/slurm/train-%j.log"),
    ],
)
def test_a_log_lies_in_the_folder_of_its_run_whatever_that_is_called(tmp_path, folder, expected):
    assert f"--output={expected.format(tmp_path)}" in options(single(tmp_path / folder))


@pytest.mark.parametrize("folder", ['say "so"', "back\\slash", "line\nbreak"])
def test_a_folder_that_sbatch_cannot_name_is_refused(tmp_path, folder):
    with pytest.raises(UserError, match="sbatch takes no path with quotes, backslashes or line breaks"):
        render(single(tmp_path / folder), BARE)


def test_line_breaks_are_refused_wherever_a_line_of_the_script_or_of_a_task_would_hold_them(tmp_path):
    broken = "data.train='a\nb'"
    for job in (single(tmp_path, broken), single(tmp_path, "data.train='a\0b'")):
        with pytest.raises(UserError, match="a line break cannot be passed to a job"):
            render(job, BARE)
    with pytest.raises(UserError, match="a line break cannot be passed to a job"):
        write_tasks(array(tmp_path, broken))


def test_a_job_has_a_name_of_plain_letters(tmp_path):
    (name,) = [line for line in options(replace(single(tmp_path), name="a b;c/d 'e'")) if "job-name" in line]
    assert re.fullmatch(r"--job-name=[\w.-]+", name)


@pytest.mark.parametrize(("own_file", "expected"), [("", "4"), ("export OMP_NUM_THREADS=6\n", "6")])
def test_threads_are_the_cpus_of_a_rank_unless_the_environment_file_says_otherwise(stubs, own_file, expected):
    (stubs.folder / "environment.sh").write_text(f"{own_file}export SEEN=$OMP_NUM_THREADS\n")
    cluster = replace(BARE, environment=str(stubs.folder / "environment.sh"), cpus_per_node=4)
    assert stubs.run(single(stubs.folder), cluster, OMP_NUM_THREADS="1") == 0, stubs.log()
    assert [call.environment["SEEN"] for call in stubs.calls("srun")] == [expected]


def test_the_template_of_an_environment_file_can_be_sourced_as_it_is(stubs):
    cluster = replace(BARE, environment=str(shipped("slurm/environment.sh")))
    assert stubs.run(single(stubs.folder), cluster, USER="me") == 0, stubs.log()
    assert not stubs.log()
