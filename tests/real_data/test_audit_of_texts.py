"""What the audit finds in the texts of public sets: known defects, each looked at by eye, and hardly anything else."""

import pytest

from prefopt.config.choices import DataFormat
from prefopt.data.reading import read_records
from tests.audit_rows import found

ULTRAFEEDBACK = "ultrafeedback_1k_train.jsonl.gz"
ORCA = "orca_dpo_openai_format_validation.jsonl.gz"
SHAREGPT = "llamafactory_dpo_en_demo.json.gz"
ALPACA = "llamafactory_alpaca_en_demo.json.gz"
DEFECTS = {
    (ULTRAFEEDBACK, "secrets"): set(),
    (ULTRAFEEDBACK, "personal_data"): {"85", "187", "259", "263"},
    (ULTRAFEEDBACK, "control_characters"): {"34", "196", "270", "349", "631"},
    (ULTRAFEEDBACK, "mojibake"): {"435"},
    (ULTRAFEEDBACK, "near_duplicate"): set(),
    (ORCA, "secrets"): set(),
    (ORCA, "personal_data"): set(),
    (ORCA, "control_characters"): {"129", "172"},
    (ORCA, "mojibake"): {"129", "172", "188"},
    (ORCA, "near_duplicate"): set(),
    (SHAREGPT, "secrets"): set(),
    (SHAREGPT, "personal_data"): set(),
    (SHAREGPT, "control_characters"): {"row 16", "row 68", "row 287"},
    (SHAREGPT, "mojibake"): {"row 16"},
    (SHAREGPT, "near_duplicate"): set(),
    (ALPACA, "secrets"): set(),
    (ALPACA, "personal_data"): {"row 435"},
    (ALPACA, "control_characters"): set(),
    (ALPACA, "mojibake"): set(),
    (ALPACA, "near_duplicate"): set(),
}
"""Places of the rows: replacement characters, the boxes of a wrong code page, numbers and addresses that look real."""


def read(path):
    kind = "sft" if path.name == ALPACA else "preference"
    return list(read_records(str(path), format=DataFormat.auto, kind=kind).records)


@pytest.mark.parametrize(("name", "check"), DEFECTS)
def test_a_public_set_has_its_defects_and_no_false_alarm(shared_file, name, check):
    rows = read(shared_file(name))
    finding = found(check, rows)
    places = {rows[row].source.rpartition(":")[2] for row in finding.rows["train"].tolist()}
    assert places == DEFECTS[name, check]


@pytest.mark.parametrize("name", [ULTRAFEEDBACK, ORCA, SHAREGPT, ALPACA])
def test_answers_in_an_unexpected_language_are_rare_in_public_sets(shared_file, name):
    assert found("language", read(shared_file(name))).share <= 0.005


def test_words_tell_almost_every_chosen_answer_of_orca_and_few_of_ultrafeedback(shared_file):
    orca, ultrafeedback = (found("separability", read(shared_file(name))) for name in (ORCA, ULTRAFEEDBACK))
    assert orca.gauge > 0.9
    assert "happy to" in orca.values["words"]["rejected"]
    assert 0.5 < ultrafeedback.share < 0.65
    assert "sees too little here" in found("label_noise", read(shared_file(ULTRAFEEDBACK))).summary
