"""What `prefopt.submit` gives to Slurm, and what is left if Slurm refuses; stubs stand for Slurm's commands."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt.cluster.slurm import QueuedJob, cancel, find_queued, submit
from prefopt.process.errors import UserError
from prefopt.submit import main

SBATCH = """\
#!/bin/bash
echo "$@" >>"$STUBS/sbatch.calls"
number=$((40 + $(wc -l <"$STUBS/sbatch.calls")))
cp "${@: -1}" "$STUBS/$number.sh"
[ "$number" = "${REFUSED-}" ] && { echo "sbatch: error: Batch job submission failed: Invalid account" >&2; exit 1; }
echo "$number${CLUSTER-}"
"""
LISTED = """\
#!/bin/bash
echo "$@" >>"$STUBS/squeue.calls"
echo "${SAYS-}"
echo "${COMPLAINS-}" >&2
exit "${CODE-0}"
"""


class Slurm:
    """Stubs of sbatch, scancel and squeue.

    Attributes:
        folder: What they note.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in {"sbatch": SBATCH, "squeue": LISTED, "scancel": LISTED.replace("squeue", "scancel")}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def calls(self, name: str) -> list[str]:
        path = self.folder / f"{name}.calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Slurm:
    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("STUBS", str(tmp_path / "bin"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path / "work")
    return Slurm(tmp_path / "bin")


SWEEP = ["cluster=slurm_cpu", "algorithm.beta=0.1,0.3", "sweep.name=grid", "logger=none"]


def test_a_run_is_submitted_with_the_script_that_lies_in_its_folder(slurm, capsys):
    main(["cluster=slurm_cpu", "run.name=voice"])
    run = Path.cwd() / "runs" / "voice"
    script = run / "slurm" / "train.sh"
    assert slurm.calls("sbatch") == [f"--parsable {script}"]
    assert (slurm.folder / "41.sh").read_text() == script.read_text()
    (line,) = [json.loads(each) for each in (run / "slurm" / "jobs.jsonl").read_text().splitlines()]
    assert (line["job"], line["kind"], line["tasks"], line["after"]) == ("41", "train", None, [])
    said = capsys.readouterr().out
    assert f"log     {run / 'slurm' / 'train-41.log'}" in said
    assert f"prefopt status {run}" in said
    assert "scancel 41" in said


def test_a_sweep_is_two_jobs_of_which_the_second_waits_for_the_first_under_its_id(slurm, capsys):
    main(SWEEP)
    folder = Path.cwd() / "runs" / "grid"
    assert [line.split("/")[-1] for line in slurm.calls("sbatch")] == ["prepare.sh", "train.sh"]
    assert "#SBATCH --dependency=afterok:41\n" in (slurm.folder / "42.sh").read_text()
    assert "--dependency" not in (slurm.folder / "41.sh").read_text()
    task = (folder / "slurm" / "train.tasks" / "1").read_text().splitlines()
    assert task == [
        str(folder / "beta-0.3"), "logger=none", "algorithm.beta=0.3", f"run.root={folder}", "run.name=beta-0.3",
        "logger.group=grid",
    ]  # fmt: skip
    lines = [json.loads(each) for each in (folder / "slurm" / "jobs.jsonl").read_text().splitlines()]
    assert [(line["job"], line["kind"], line["after"]) for line in lines] == [
        ("41", "prepare", []),
        ("42", "train", ["41"]),
    ]
    assert lines[1]["tasks"] == {"0": str(folder / "beta-0.1"), "1": str(folder / "beta-0.3")}
    said = capsys.readouterr().out
    assert f"{folder}/slurm/train-42_*.log" in said
    assert "scancel 41 42" in said


def test_the_id_of_a_job_is_a_number_also_where_sbatch_names_the_cluster_behind_it(slurm, monkeypatch):
    monkeypatch.setenv("CLUSTER", ";west")
    (slurm.folder / "job.sh").write_text("")
    assert submit(slurm.folder / "job.sh") == "41"


def test_if_a_later_job_is_refused_the_earlier_ones_are_taken_back_and_nothing_is_left(slurm, fails, monkeypatch):
    monkeypatch.setenv("REFUSED", "42")
    message = fails(main, SWEEP)
    assert "Invalid account" in message
    assert "Nothing was submitted" in message
    assert slurm.calls("scancel") == ["41"]
    assert not (Path.cwd() / "runs" / "grid").exists()


def test_of_what_sbatch_says_the_first_line_is_told_with_the_way_without_a_cluster(slurm, fails):
    (slurm.folder / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: No host.' >&2\necho 'fatal: b' >&2\nexit 1\n"
    )
    message = fails(main, ["cluster=slurm_cpu", "run.name=voice"])
    assert message.endswith("sbatch: error: No host. Nothing was submitted. Without a cluster: cluster=local.\n")


def test_a_refusal_leaves_alone_what_was_there_before(slurm, fails, monkeypatch):
    main(["cluster=slurm_cpu", "run.name=voice"])
    monkeypatch.setenv("REFUSED", "42")
    fails(main, ["cluster=slurm_cpu", "run.name=voice"])
    assert (Path.cwd() / "runs" / "voice" / "slurm" / "jobs.jsonl").exists()


@pytest.mark.parametrize("where", ["logger.project='a\nb'", "model.revision='a\nb',c"])
def test_what_a_task_cannot_hold_is_refused_and_nothing_is_left(slurm, fails, where):
    assert "a line break cannot be passed to a job" in fails(main, [*SWEEP, where])
    assert not slurm.calls("sbatch")
    assert not (Path.cwd() / "runs" / "grid").exists()


def test_a_dry_run_prints_scripts_and_writes_and_submits_nothing(slurm, capsys):
    main([*SWEEP, "submit.dry_run=true"])
    printed = capsys.readouterr().out
    assert printed.count("#!/bin/bash\n") == 2
    assert printed.count("#SBATCH --dependency=afterok:<id of grid-reference>\n") == 1
    assert not slurm.calls("sbatch")
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (["cluster.ranks_per_node=2"], ["-m prefopt.prepare", "nproc_per_node=2", "beta-0.1", "beta-0.3"]),
        (
            ["sweep=optuna_dpo", "sweep.search.prune=false"],
            ["-m prefopt.prepare", "# 20 trials, each with settings that are drawn"],
        ),
    ],
)
def test_a_dry_run_on_this_machine_prints_the_commands(slurm, capsys, own, expected):
    swept = SWEEP[1:] if "sweep" not in own[0] else SWEEP[2:]
    main(["cluster=local", *swept, *own, "submit.dry_run=true"])
    printed = capsys.readouterr().out
    assert [words for words in expected if words not in printed] == []
    assert printed.count(" -m prefopt.") == printed.count(sys.executable)
    assert "#!/bin/bash" not in printed
    assert not list(Path.cwd().iterdir())


def test_without_sbatch_nothing_is_written_and_the_ways_out_are_named(slurm, fails, monkeypatch):
    (slurm.folder / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(slurm.folder))
    message = fails(main, SWEEP)
    assert "nothing was submitted" in message
    assert "submit.dry_run=true" in message
    assert "cluster=local" in message
    assert not list(Path.cwd().iterdir())


def test_squeue_is_asked_for_all_jobs_at_once_and_tasks_are_told_apart(slurm, monkeypatch):
    monkeypatch.setenv("SAYS", "41_0|RUNNING|n1\n41_1|PENDING|(Priority | x)\nrubbish")
    assert find_queued(["41", "42"]) == [
        QueuedJob("41_0", "RUNNING", "n1"),
        QueuedJob("41_1", "PENDING", "(Priority | x)"),
    ]
    assert "--jobs=41,42" in slurm.calls("squeue")[0]
    assert find_queued([]) == []


def test_a_job_that_slurm_has_forgotten_is_in_no_queue(slurm, monkeypatch):
    monkeypatch.setenv("COMPLAINS", "slurm_load_jobs error: Invalid job id specified")
    monkeypatch.setenv("CODE", "1")
    assert find_queued(["41"]) == []


def test_a_controller_that_does_not_answer_is_not_taken_for_an_empty_queue(slurm, monkeypatch, fails):
    main(["cluster=slurm_cpu", "run.name=voice"])
    monkeypatch.setenv("COMPLAINS", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    monkeypatch.setenv("CODE", "1")
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        find_queued(["41"])
    assert "Try again later" in fails(main, ["cluster=slurm_cpu", "run.name=voice"])
    assert len(slurm.calls("sbatch")) == 1


def test_nothing_to_cancel_asks_nobody(slurm):
    cancel([])
    assert not slurm.calls("scancel")


def test_submitting_loads_neither_torch_nor_what_trains(slurm):
    script = (
        "import sys; from prefopt.submit import main\n"
        "main(sys.argv[1:])\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'wandb', 'optuna'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, *SWEEP], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(slurm.calls("sbatch")) == 2
