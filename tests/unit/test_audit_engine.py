"""The engine of the audit: several processes, skipped checks, the gate's levels, and the cache of results."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.config.choices import CheckName, GateName
from prefopt.config.gate import GateConfig
from prefopt.config.load import from_dict, load_config
from prefopt.config.plain import as_dict
from prefopt.config.schema import DataConfig
from prefopt.data.audit import audit as auditing
from prefopt.data.audit.audit import audit_records, audit_run, command_for, key_of, refuse
from prefopt.data.audit.engine import CHUNK_ROWS, load_check, run_checks
from prefopt.data.audit.finding import Audit, Finding
from prefopt.data.audit.reading import Material
from prefopt.data.audit.token_notes import audit_tokens
from prefopt.data.encoding import TokenizeNotes
from prefopt.data.loading import Splits, read_splits
from prefopt.data.table import Table
from prefopt.process.errors import UserError
from tests.audit_rows import pair

OFF = GateConfig.off()
FAST = (CheckName.identical, CheckName.contradictory, CheckName.duplicate, CheckName.leakage, CheckName.length_bias)


def material(num_rows: int = 30) -> Material:
    rows = [pair(f"question {line % 25}", f"answer {line % 25}", "no", line=line) for line in range(1, num_rows + 1)]
    return Material.of_used({"train": rows, "held_out": rows[:2]})


def measured(**changed: Any) -> dict[str, Any]:
    entry = {"check": "refusal", "count": 3, "share": 0.3, "gauge": 0.3, "summary": "", "remedy": "", "examples": []}
    return {**entry, "values": {}, **changed}


def audited(gate: GateConfig, key: str | None = None) -> Audit:
    return audit_records(material, kind="preference", gate=gate, data={"train": "rows.jsonl"}, key=key)


def test_several_processes_find_what_one_finds() -> None:
    train = Table.of(pair(f"q {line % 4000}", f"a {line % 4000}", "b", line=line) for line in range(5 * CHUNK_ROWS))
    records = {"train": train, "held_out": train[:10]}
    one, two = (run_checks(records, kind="preference", num_processes=number, only=FAST) for number in (1, 2))
    for name in FAST:
        first, second = one[name].found, two[name].found
        assert first is not None
        assert second is not None
        assert {split: rows.tolist() for split, rows in first.rows.items()} == {
            split: rows.tolist() for split, rows in second.rows.items()
        }
        assert (first.summary, first.examples, first.values) == (second.summary, second.examples, second.values)
    assert one[CheckName.duplicate].found is not None
    assert one[CheckName.duplicate].found.count == 5 * CHUNK_ROWS - 4000


def test_progress_ends_with_all_rows() -> None:
    told: list[tuple[int, int]] = []
    run_checks(material().records, kind="preference", only=FAST, progress=lambda *counts: told.append(counts))
    assert told[-1] == (32, 32)


def test_a_check_that_cannot_be_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_check(CheckName.identical, "sft", with_model=True)[1] == "it is for preference pairs"
    assert "model=" in load_check(CheckName.truncation, "preference", with_model=False)[1]
    monkeypatch.setattr("prefopt.data.audit.engine.is_installed", lambda package: False)
    assert "pip install 'prefopt[audit]'" in load_check(CheckName.near_duplicate, "preference", with_model=True)[1]


def test_every_check_but_that_of_the_reader_has_a_module() -> None:
    for name in set(CheckName) - {CheckName.schema}:
        assert load_check(name, "preference", with_model=True)[0] is not None, name


@pytest.mark.parametrize(
    ("gauge", "count", "level"),
    [(0.3, 3, "warning"), (0.6, 3, "error"), (0.2, 3, "note"), (0.5, 3, "warning"), (0, 0, "ok")],
)
def test_a_level_is_decided_by_the_limits_that_are_exceeded(gauge: float, count: int, level: str) -> None:
    gate = GateConfig(warn={"refusal": 0.2}, error={"refusal": 0.5})
    assert Finding.of(measured(gauge=gauge, count=count), gate).level == level


def test_a_limit_of_null_is_never_exceeded() -> None:
    assert Finding.of(measured(gauge=1.0), GateConfig(warn={"refusal": None})).level == "note"


def test_the_gate_names_check_count_rows_and_remedies() -> None:
    audit = audited(GateConfig())
    assert audit.checks[0].level == "error"
    with pytest.raises(UserError) as caught:
        refuse(audit)
    for said in ("leakage: ", "4 training rows", "rows.jsonl:1 ", "data.on_overlap=skip", "data/gate=off"):
        assert said in str(caught.value)


def test_nothing_is_an_error_when_the_gate_is_off() -> None:
    config = load_config(["data/gate=off"])
    gate = config.data.gate
    assert gate == OFF == from_dict(as_dict(config), "config.yaml").data.gate
    assert not [name for name, limit in gate.error.items() if limit is not None]
    audit = audited(gate)
    assert {finding.check: finding.level for finding in audit.checks}["leakage"] == "warning"
    refuse(audit)


def test_the_strict_gate_has_every_error_of_the_default_one() -> None:
    strict, default = (load_config([f"data/gate={name}"]).data.gate for name in ("strict", "default"))
    assert default == GateConfig()
    assert all(limit is None or strict.error[name] <= limit for name, limit in default.error.items())
    assert strict.warn == default.warn


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (["data.gate.name=off"], "data/gate=off"),
        (["data.gate.name=strict"], "data/gate=strict"),
        (["data/gate=off", "data.gate.error.secrets=0"], "leave data/gate=off out"),
        ([f"data.gate.error.{check}=null" for check in GateConfig().error], "data/gate=off"),
        (["data/gate=off", "data.gate.name=default"], "data/gate=off"),
    ],
)
def test_a_gate_whose_name_says_other_than_its_limits_is_refused(overrides: list[str], remedy: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(overrides)
    assert remedy in str(raised.value)


def test_limits_of_ones_own_need_no_other_name() -> None:
    for overrides in (["data.gate.error.secrets=0"], ["data/gate=strict", "data.gate.error.leakage=null"]):
        assert load_config(overrides).data.gate.error


def test_a_gate_changes_no_runs_name() -> None:
    assert len({load_config([f"data/gate={name.value}"]).run.name for name in GateName}) == 1


def test_findings_come_worst_first_and_survive_being_written() -> None:
    audit = audited(GateConfig())
    levels = [finding.level for finding in audit.checks]
    assert levels == sorted(levels, key=["error", "warning", "note", "ok"].index)
    assert Audit.from_dict(json.loads(json.dumps(audit.to_dict()))) == audit
    assert audit.rows == 32


def test_a_second_audit_runs_no_check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    first = audited(GateConfig(), key="a" * 64)
    monkeypatch.setattr(auditing, "run_checks", None)
    assert audited(GateConfig(), key="a" * 64) == first
    off = audited(OFF, key="a" * 64)
    assert (first.checks[0].level, off.checks[0].level) == ("error", "warning")
    with pytest.raises(TypeError):
        audited(GateConfig(), key="b" * 64)
    (kept,) = (tmp_path / "audit").iterdir()
    kept.write_text("{")
    with pytest.raises(TypeError):
        audited(GateConfig(), key="a" * 64)


def test_the_key_is_that_of_contents_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')

    def key(seed: int = 0, **settings: Any) -> str | None:
        return key_of(DataConfig(train=str(path), **settings), kind="preference", seed=seed, rows="all")

    first = key()
    assert key(gate=OFF) == first, "the gate judges afterwards"
    assert len({first, key(as_chat=True), key(seed=1), key(held_out_fraction=0.5)}) == 4
    path.write_text('{"prompt": "p", "chosen": "a", "rejected": "c"}\n')
    assert key() != first


def test_data_on_the_hub_have_no_key() -> None:
    assert key_of(DataConfig(train="hub:some/data"), kind="preference", seed=0, rows="all") is None


def test_the_counts_of_tokenising_are_findings_of_a_run() -> None:
    notes = TokenizeNotes(num_rows=20, num_truncated=1, num_control_kept=2, first_control_token="a.jsonl:3: <|end|>")
    gate = GateConfig(name=GateName.off, warn={"truncation": 0.02, "control_tokens": 0.0}, error={})
    audit = audit_tokens(audited(gate), {"train": notes, "held_out": TokenizeNotes(num_rows=5)}, gate)
    found = {finding.check: finding for finding in audit.checks}
    assert (found["truncation"].level, found["truncation"].count, found["truncation"].share) == ("warning", 1, 1 / 25)
    assert found["control_tokens"].examples == [{"source": "a.jsonl:3", "detail": "holds <|end|>", "text": ""}]
    assert not {"truncation", "control_tokens"} & {each["check"] for each in audit.skipped}
    with pytest.raises(UserError, match="truncation: 1 row is longer"):
        audit_tokens(audited(gate), {"train": notes}, GateConfig(error={"truncation": 0.01}))


def test_rows_that_a_mixture_repeats_are_no_duplicates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"prompt": f"p {n % 8}", "chosen": f"a {n % 8}", "rejected": "b"}) + "\n" for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    config = DataConfig(train=[{"path": str(tmp_path / "rows.jsonl"), "weight": 3.0}], held_out_fraction=0.0)

    def read() -> Splits:
        return read_splits(config, kind="preference", seed=0)

    assert len(read().train) == 27
    audit = audit_run(config, read, kind="preference", seed=0)
    counts = {finding.check: finding.count for finding in audit.checks}
    assert (audit.rows, counts["duplicate"]) == (9, 1)


def test_the_command_that_a_run_names_reads_the_data_as_the_run_does() -> None:
    config = DataConfig(train="my rows.jsonl", columns={"prompt": "question"}, max_length=64, gate=OFF)
    _, _, *overrides = shlex.split(command_for(config, "sft"))
    again = load_config(["data=files", *overrides])
    assert again.algorithm.rows == "sft"
    assert replace(again.data, gate=config.gate) == config
