"""Secrets and personal data are masked wherever the audit, or an error about a row, shows a text of the data."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.audit import main as audit
from prefopt.data.audit.masking import excerpt, mask_private
from prefopt.data.values import describe, show_name
from prefopt.train import main as train
from tests.integration.test_audit import rows, write

TOKEN = "ghp_DNxril3RavGD5MfvJ7NScUykT8C8UBkkpdhi"
MAIL = "h.k.lindqvist@posteo.net"
REST = "question of many words that follow here one two three four five"


def leaks(text: str) -> list[str]:
    """The parts of the token and of the address that a text shows, in any case of letters."""
    pieces = [TOKEN[start : start + 8] for start in range(4, len(TOKEN) - 8)]
    return [each for each in (*pieces, MAIL[3:]) if each.lower() in text.lower()]


def test_no_check_shows_a_secret_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = rows()
    planted = [
        {**clean[0], "prompt": f"{TOKEN} {MAIL} {REST}"},
        {**clean[1], "chosen": f"I'm sorry, but I cannot use {TOKEN}, nor write to {MAIL}."},
        {**clean[2], "chosen": f"It\u00e2\u20ac\u2122s {TOKEN[:30]}{TOKEN[30:]} and It\u00e2\u20ac\u2122s {MAIL}"},
        {**clean[3], "chosen": f"Use {TOKEN}\u200b{TOKEN} with\u0007 {MAIL}"},
        {**clean[4], "prompt": 7, "chosen": f"{'so ' * 14}{TOKEN}", "rejected": [f"\n{TOKEN}"]},
        {**clean[5], "chosen": [f"\n{TOKEN}"]},
        {**clean[6], "rejected": f"{REST} {TOKEN} {clean[6]['rejected']} {clean[7]['rejected']} yes"},
        {**clean[6], "rejected": f"{REST} {TOKEN} {clean[6]['rejected']} {clean[7]['rejected']} no"},
    ]
    path = write(tmp_path / "rows.jsonl", [*planted, *clean[8:]])
    held_out = write(tmp_path / "held_out.jsonl", [{**clean[7], "prompt": f"{TOKEN} {MAIL} {REST} six"}])
    output = tmp_path / "out"
    with pytest.raises(SystemExit):
        audit([str(path), f"data.held_out={held_out}", "--output", str(output)])
    found = {each["check"] for each in json.loads((output / "audit.json").read_text())["checks"] if each["count"]}
    assert {"schema", "near_leakage", "near_duplicate", "refusal", "mojibake", "control_characters"} <= found
    assert not leaks(capsys.readouterr().out)
    assert not leaks((output / "audit.json").read_text(encoding="utf-8"))
    assert not leaks((output / "audit.html").read_text(encoding="utf-8"))


def test_an_error_about_a_row_masks_what_it_quotes(overrides: list[str], tmp_path: Path, fails: Any) -> None:
    path = write(tmp_path / "rows.jsonl", [*rows(), {**rows()[0], "chosen": [{"x": f"\n{TOKEN}"}]}])
    message = fails(train, [*overrides, f"data.train={path}"])
    assert f"{path}:41" in message
    assert not leaks(message)


@pytest.mark.parametrize("value", [f"{'x ' * 25}{TOKEN}", [f"\n{TOKEN}"], {"a\t": f"\u0007{TOKEN}"}, {TOKEN: MAIL}])
def test_a_quoted_value_is_masked_before_it_is_cut(value: object) -> None:
    assert not leaks(describe(value))
    assert "*" in describe(value)


def test_a_mask_keeps_the_length_and_other_text() -> None:
    text = f"Call {TOKEN}, caf\u00e9 \U0001f600 {MAIL}!"
    masked = mask_private(text)
    assert len(masked) == len(text)
    assert masked == f"Call ghp_{'*' * 36}, caf\u00e9 \U0001f600 h.{'*' * 22}!"
    assert mask_private("nothing here, 12.5 % of 3,400 rows") == "nothing here, 12.5 % of 3,400 rows"
    assert excerpt(f"{'x' * 20} {TOKEN}", 30) == f"{'x' * 20} ghp_*****"
    assert not leaks(show_name(f"{'y ' * 20}{TOKEN}"))
