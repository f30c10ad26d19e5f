"""docs/gpu.md tells what results files hold, and says so where there are none."""

import itertools
import json
import re
from pathlib import Path

import pytest

from benchmarks import gpu_table, one_card, results
from benchmarks.shapes import MODELS

TIMES = {"trl": 2.5, "trl_precompute": 1.8, "prefopt": 1.0}


def build_variant(name, *, mfu=0.5):
    return {
        "variant": name,
        "times_min": TIMES[name.removesuffix("_liger")],
        "pairs_per_s": 32.5,
        "tokens_per_s": 81_234.4,
        "mfu": mfu,
        "total_bytes": 22.76e9,
        "gradient_error": 0.0612 if name.startswith("prefopt") else 0.0598,
    }


def build_result(model="1B", trained="none", pairs="1024/256", names=TIMES, **changes):
    return {
        "model": model,
        "trained": trained,
        "pairs": pairs,
        "batch_pairs": 4,
        "batches": 1,
        "tokens_real": 6139 + 4096,
        "tokens_shared": 6139,
        "variants": [build_variant(name) for name in names],
        **changes,
    }


def write_card(folder, found, *, gpu="NVIDIA H200", name="dpo_step", rounds=4):
    path = folder / results.name_machine(gpu) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"date": "2026-12-01", "command": "python -m benchmarks.dpo_step --write", "python": "3.12.3"}
    packages = {"torch": "2.13.0+cu130", "trl": "1.16.0"}
    content = {**header, "gpu": gpu, "packages": packages, "dtype": "torch.bfloat16", "rounds": rounds}
    path.write_text(json.dumps({**content, "results": found}), encoding="utf-8")


def cells(text, *beginning):
    """The rows of the table that begin with these cells."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [row for row in rows if row[: len(beginning)] == list(beginning)]


def test_a_measured_step_is_told_with_its_origin_and_beside_what_was_computed(tmp_path):
    write_card(tmp_path, [build_result()])
    text = gpu_table.render(tmp_path)
    assert text.startswith("### NVIDIA H200\n")
    assert "2026-12-01, `python -m benchmarks.dpo_step --write`, torch.bfloat16, Python 3.12.3, torch 2.13.0" in text
    (row,) = cells(text, "1B", "full")
    assert row[2:8] == ["4 x 1024/256", "transformers'", "32.5", "81,234", "50.0%", "22.8"]
    assert row[8] == f"{one_card.predict_first_measurement(has_fused_layers=False)[1] / 1e9:.1f}" == "22.7"
    assert row[9:] == ["2.50 x", "1.80 x", "6.1e-02, 6.0e-02"]


def test_what_is_not_measured_is_said_to_be_not_measured(tmp_path):
    write_card(tmp_path, [build_result()])
    text = gpu_table.render(tmp_path)
    assert [row[4] for row in cells(text, "1B", "LoRA") + cells(text, "8B", "full")] == ["not measured"] * 2
    missing = {tuple(row[:2]) for row in cells(text) if row[4] == "not measured"}
    assert len(missing) == len(gpu_table.EXPECTED) - 1
    nothing = gpu_table.render(tmp_path / "empty")
    assert "No card has been measured" in nothing
    assert nothing.count("not measured") == len(gpu_table.EXPECTED)


def test_fused_layers_have_a_row_of_their_own_with_their_own_baselines(tmp_path):
    names = [*TIMES, *(f"{name}_liger" for name in TIMES)]
    write_card(tmp_path, [build_result(names=names), build_result(trained="lora", names=names)])
    text = gpu_table.render(tmp_path)
    assert [row[3] for row in cells(text, "1B", "full")] == ["transformers'", "Liger's"]
    assert [row[8] == "-" for row in cells(text, "1B", "LoRA")] == [False, True], "Liger under LoRA is not computed"


def test_failures_are_told_and_yield_to_results_and_more_rounds_to_fewer(tmp_path):
    failed = {"model": "8B", "trained": "none", "pairs": "1024/256", "error": "out of memory"}
    wrong = {"model": "3B", "trained": "none", "pairs": "1024/256", "error": "prefopt differs from float32: loss by 1"}
    write_card(tmp_path, [build_result(batch_pairs=8), failed, wrong])
    write_card(tmp_path, [build_result(), failed, {**wrong, "model": "1B"}], name="dpo_step_memory", rounds=1)
    text = gpu_table.render(tmp_path)
    assert cells(text, "8B", "full")[0][4] == "out of memory"
    assert cells(text, "3B", "full")[0][4] == "prefopt differs from float32"
    assert [row[2] for row in cells(text, "1B", "full")] == ["8 x 1024/256"]


def test_results_of_a_cpu_are_left_out_and_cards_are_apart(tmp_path):
    write_card(tmp_path, [build_result()], gpu="NVIDIA H200")
    write_card(tmp_path, [build_result(model="8B")], gpu="NVIDIA H100 80GB HBM3")
    (tmp_path / "x86_64-2cpu").mkdir()
    (tmp_path / "x86_64-2cpu" / "dpo_step.json").write_text('{"gpu": null}')
    assert re.findall(r"^### .*", gpu_table.render(tmp_path), flags=re.MULTILINE) == [
        "### NVIDIA H100 80GB HBM3",
        "### NVIDIA H200",
    ]


def test_rows_have_the_columns_and_follow_the_models(tmp_path):
    write_card(tmp_path, [build_result(model="8B"), build_result(model="0.5B", pairs="mixed"), build_result("mine.1")])
    rows = cells(gpu_table.render(tmp_path))
    assert {len(row) for row in rows} == {len(gpu_table.COLUMNS)}
    order = [row[0] for row in rows[2:]]
    assert [name for name, _ in itertools.groupby(order)] == ["0.5B", "1B", "3B", "8B", "mine.1"]
    assert set(order) - {"mine.1"} <= set(MODELS)


def test_the_page_has_the_tables_of_the_committed_results():
    page = gpu_table.PAGE.read_text(encoding="utf-8")
    assert page == gpu_table.replace_tables(page, gpu_table.render(results.RESULTS)), "python -m benchmarks.gpu_table"
    with pytest.raises(SystemExit):
        gpu_table.replace_tables("no markers", "")


def test_the_page_links_to_what_there_is():
    page = gpu_table.PAGE
    for target in re.findall(r"\]\((?!https:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
    for document in ("README.md", "docs/scaling.md"):
        assert "gpu.md#before-the-current-code" in (page.parents[1] / document).read_text(encoding="utf-8")
    assert Path(page).read_text(encoding="utf-8").count("## Before the current code") == 1
