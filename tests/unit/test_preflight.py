"""The look at every node before ranks start there, and what follows from what the nodes found."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import pytest

from prefopt.cluster import preflight
from prefopt.cluster.preflight import Finding, judge, look, main, read_findings
from tests.ports import find_free_ports

SHORT_S = 0.2


def look_as(node: str, folder: Path, *, nodes: int = 1, gpus: int = 0, found: int = 0, min_free_gib=0.0) -> Finding:
    """What a node of that name finds."""
    os.environ["SLURMD_NODENAME"] = node
    try:
        return look(folder, nodes, gpus, min_free_gib, count_gpus=lambda: found, timeout_s=SHORT_S)
    finally:
        del os.environ["SLURMD_NODENAME"]


def write(folder: Path, **finding) -> None:
    """Leaves what another node found."""
    folder.mkdir(exist_ok=True)
    (folder / f"{finding['node']}.node.json").write_text(json.dumps(finding))


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "an attempt's folder"


@pytest.fixture
def no_network(monkeypatch):
    """An all-reduce that takes no time and needs no peers."""
    monkeypatch.setattr(preflight, "_time_all_reduce", lambda finding, num_nodes: 0.001)


def test_a_fit_node_has_no_problems_and_none_is_left_out(folder):
    finding = look_as("n1", folder, gpus=8, found=8)
    assert finding == Finding("n1")
    assert read_findings(folder) == [finding]
    assert judge(folder, 1) == ([], [])


@pytest.mark.parametrize("found", [0, 7])
def test_a_node_whose_devices_do_not_answer_is_left_out_by_name(folder, found):
    look_as("n1", folder, gpus=8, found=found)
    bad, problems = judge(folder, 1)
    assert bad == ["n1"]
    assert problems == [f"n1: {found} of 8 GPUs answer (nvidia-smi -L)"]


def test_devices_are_not_asked_for_where_none_are_wanted(folder):
    os.environ["SLURMD_NODENAME"] = "n1"
    try:
        look(folder, 1, 0, 0.0, count_gpus=lambda: pytest.fail("asked"), timeout_s=SHORT_S)
    finally:
        del os.environ["SLURMD_NODENAME"]


def test_a_full_disk_is_a_problem_but_no_nodes_fault(folder):
    look_as("n1", folder, min_free_gib=1e9)
    bad, problems = judge(folder, 1)
    assert bad == []
    (problem,) = problems
    assert f"GiB free for {folder}, cluster.min_free_gib asks for 1000000000.0" in problem


def test_a_folder_that_cannot_be_written_is_named_by_the_node_and_missed_by_the_judge(folder):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file in its place")
    finding = look_as("n1", folder)
    assert finding.problems == [f"{folder} cannot be written (File exists)"]
    bad, problems = judge(folder, 1)
    assert (bad, len(problems)) == ([], 1)


def test_a_disk_that_fills_up_in_the_look_is_told_without_a_traceback(folder, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preflight, "write_json", full)
    assert look_as("n1", folder).problems == [f"{folder} cannot be written (No space left on device)"]


def test_a_folder_that_the_nodes_do_not_share_is_told_by_both_and_no_node_is_left_out(tmp_path):
    for node in ("n1", "n2"):
        folder = tmp_path / node
        finding = look_as(node, folder, nodes=2)
        assert (finding.node, finding.waits_for, finding.all_reduce_s) == (node, 1, None)
        bad, (problem,) = judge(folder, 2)
        assert bad == []
        assert f"written by 2 nodes, seen here are the files of {node}." in problem
        assert "set run.root to a shared one" in problem


def test_a_node_that_leaves_no_word_is_missed(folder, no_network):
    write(folder, node="n2")
    look_as("n1", folder, nodes=3)
    bad, (problem,) = judge(folder, 3)
    assert bad == []
    assert "written by 3 nodes, seen here are the files of n1, n2" in problem


def test_all_nodes_see_each_other_and_measure_their_network(folder, no_network):
    write(folder, node="n2")
    assert look_as("n1", folder, nodes=2).all_reduce_s == 0.001
    assert judge(folder, 2) == ([], [])


def test_nobody_waits_in_an_all_reduce_for_a_node_with_a_problem(folder, monkeypatch):
    monkeypatch.setattr(preflight, "_time_all_reduce", lambda *_: pytest.fail("it would hang"))
    write(folder, node="n2", problems=["0 of 8 GPUs answer"])
    assert look_as("n1", folder, nodes=2, gpus=8, found=8).problems == []
    assert judge(folder, 2)[0] == ["n2"]


def test_every_bad_node_and_every_problem_is_named(folder):
    write(folder, node="n1", problems=["a", "b"])
    write(folder, node="n2")
    write(folder, node="n3", problems=["c"], folder_problems=["d"])
    assert judge(folder, 3) == (["n1", "n3"], ["n1: a", "n1: b", "n3: c", "n3: d"])


def test_half_written_findings_are_not_read(folder):
    write(folder, node="n1")
    (folder / "n2.node.json.0a1b.partial").write_text('{"no')
    assert [finding.node for finding in read_findings(folder)] == ["n1"]


@pytest.mark.parametrize(
    ("finding", "code", "said"),
    [
        ({"node": "n1"}, 0, ""),
        ({"node": "n1", "problems": ["no GPU"]}, 1, "n1\n"),
        ({"node": "n1", "folder_problems": ["full"]}, 1, ""),
    ],
)
def test_the_judge_says_bad_nodes_for_slurm_and_problems_for_people(folder, capsys, finding, code, said):
    write(folder, **finding)
    with pytest.raises(SystemExit) as ended:
        main(["judge", str(folder), "--nodes=1"])
    assert ended.value.code == code
    out, err = capsys.readouterr()
    assert out == said
    assert [f"preflight: n1: {p}" for p in finding.get("problems", finding.get("folder_problems", []))] == (
        err.splitlines()
    )


@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("--min-free-gib=0", 0, "preflight: {host}: fit\n"),
        ("--min-free-gib=1e9", 1, "preflight: {host}: "),
        ("--nodes=2", 0, "preflight: {host}: does not see the files of 1 other nodes\n"),
    ],
)
def test_a_look_says_one_line_with_the_nodes_name(folder, capsys, monkeypatch, setting, code, said):
    monkeypatch.setattr(preflight, "TIMEOUT_S", SHORT_S)
    monkeypatch.setattr(preflight.look, "__kwdefaults__", {"count_gpus": None, "timeout_s": SHORT_S})
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["look", str(folder), "--nodes=1", setting])
    assert ended.value.code == code
    assert capsys.readouterr().out.startswith(said.format(host=socket.gethostname()))


def test_devices_are_counted_as_nvidia_smi_lists_them(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: H100 (UUID: x)'\necho '  MIG 1g (UUID: y)'\necho 'GPU 1: H100'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preflight._count_gpus() == 2
    program.write_text("#!/bin/sh\necho 'GPU 0: H100'\nexit 9\n")
    assert preflight._count_gpus() == 0
    program.unlink()
    assert preflight._count_gpus() == 0


def look_as_process(node: str, rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        SLURMD_NODENAME=node,
        SLURM_NODEID=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    look(folder, 2, 0, 0.0)


@pytest.mark.slow
def test_two_nodes_time_an_all_reduce_between_them(folder):
    (port,) = find_free_ports(1)
    context = multiprocessing.get_context("spawn")
    nodes = [
        context.Process(target=look_as_process, args=(node, rank, port, folder))
        for rank, node in enumerate(("n1", "n2"))
    ]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join(600)
    assert [node.exitcode for node in nodes] == [0, 0]
    assert judge(folder, 2) == ([], [])
    assert all(finding.all_reduce_s > 0 for finding in read_findings(folder))
