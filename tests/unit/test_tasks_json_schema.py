"""JSON answers: what parses, what a schema says of it, and which fields are those of the chosen answer."""

import json
import socket
import time
from math import isnan
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from prefopt.config.tasks import JsonSchemaTaskConfig
from prefopt.evaluation.checked import sum_up_checks
from prefopt.evaluation.statistics import Bootstrap, Prompts
from prefopt.evaluation.tasks import json_schema
from prefopt.evaluation.tasks.json_answer import MAX_CHARACTERS, parse_answer
from prefopt.evaluation.tasks.json_schema import JsonSchemaTask, build_validator
from prefopt.evaluation.tasks.task import Answered, Checked
from prefopt.process.errors import UserError

ORDER = {
    "type": "object",
    "properties": {"id": {"type": "integer"}, "tags": {"type": "array", "uniqueItems": True, "items": {}}},
    "required": ["id"],
    "additionalProperties": False,
}


def check(answers: list[str], chosen: str | None = '{"id": 1}', schema: object = None, **kept: Any) -> Checked:
    validator = None if schema is None else build_validator("here", schema)
    task = JsonSchemaTask("json", validator)
    return task.check([Answered("p", answer, chosen) for answer in answers])


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ('{"a": 1}', None),
        (' \n[1, 2.5e3, "x", null, true]\t', None),
        ('"text"', None),
        ("", "empty"),
        (" \n", "empty"),
        ('```json\n{"a": 1}\n```', "fenced"),
        ('Here you are:\n```\n{"a": 1}\n```\nDone.', "fenced"),
        ('```json\n{"a": 1', "fenced"),
        ('Sure! {"a": 1}', "text_around"),
        ('{"a": 1} I hope this helps.', "text_around"),
        ('{"a": 1}{"b": 2}', "text_around"),
        ('{"a": 1, "b', "cut"),
        ('{"a": 1,', "cut"),
        ('{"a": "x\\u00', "cut"),
        ('{"a": tru', "cut"),
        ('{"a": [1, 2', "cut"),
        ('{"a": 1, "a": 2}', "repeated_key"),
        ('[{"b": {"a": 1, "a": 1}}]', "repeated_key"),
        ('{"a": NaN}', "invalid"),
        ('{"a": -Infinity}', "invalid"),
        ("{'a': 1}", "invalid"),
        ('{"a": 1,}', "invalid"),
        ("I cannot do that.", "invalid"),
        ('{"a": "line\nbreak"}', "invalid"),
        ("[" * 50_000, "invalid"),
        ("[" + "9" * 5_000 + "]", "invalid"),
        ("1e999", "invalid"),
        ("\0", "invalid"),
        ("\ud800", "invalid"),
        ('"' + "x" * MAX_CHARACTERS + '"', "too_long"),
    ],
)
def test_each_failure_has_its_name(text: str, failure: str | None) -> None:
    assert parse_answer(text).failure == failure


def test_what_parses_is_what_the_standard_library_parses() -> None:
    for text in ('{"a": [1, {"b": null}]}', "3", "-0.5e-3", '"\\ud83d\\ude00"'):
        assert parse_answer(text).value == json.loads(text)


def test_shares_and_failures_are_counted() -> None:
    found = check(['{"id": 1}', '{"id": "1"}', "```\n{}\n```", "no"], schema=ORDER)
    assert list(found.values) == ["field_f1", "valid", "parses", "extra_keys"]
    assert found.values["valid"].tolist() == [True, False, False, False]
    assert found.values["parses"].tolist() == [True, True, False, False]
    assert found.details["failures"] == {"fenced": 1, "invalid": 1}
    assert found.details["schema_errors"] == {"id: type": 1}
    assert set(found.higher_is_better) == set(found.values)


@pytest.mark.parametrize(
    ("chosen", "schema", "main"),
    [
        ('{"id": 1}', ORDER, "field_f1"),
        ('{"id": 1}', None, "field_f1"),
        ('[{"id": 1}]', None, "field_f1"),
        ("3", None, "parses"),
        ("3", {"type": "integer"}, "valid"),
        ("Yes, of course.", None, "parses"),
        (None, ORDER, "valid"),
    ],
)
def test_the_fields_decide_where_there_are_any(chosen: str | None, schema: object, main: str) -> None:
    assert next(iter(check(["{}", "no"], chosen, schema).values)) == main


def test_a_model_that_always_writes_an_empty_object_wins_nothing() -> None:
    empty, wrong = check(["{}"] * 60), check(["no"] * 60)
    checked = {"tuned": empty, "base": wrong}
    found = sum_up_checks(checked, Prompts.all_different(60), Bootstrap(200, 0))
    assert found.values["tuned"]["parses"].value == 1.0
    assert found.main == "field_f1"
    assert found.is_share
    assert found.gains["base"].low <= 0
    right = sum_up_checks(
        {**checked, "tuned": check(['{"id": 1}'] * 60)}, Prompts.all_different(60), Bootstrap(200, 0)
    )
    assert right.gains["base"].low > 0.5


def test_validity_is_that_of_the_package() -> None:
    answers = ['{"id": 1}', '{"id": 1.5}', "{}", '{"id": 2, "x": 1}', '{"id": 3, "tags": [1, 1.0]}', "[]", "null"]
    answers += ['{"id": 3, "tags": [1, true]}', '{"id": 3, "tags": [{"a": []}, {"a": {}}]}']
    answers += ['{"id": 3, "tags": [{"a": [1], "b": 2}, {"b": 2, "a": [1]}]}']
    expected = [Draft202012Validator(ORDER).is_valid(json.loads(answer)) for answer in answers]
    assert True in expected
    assert check(answers, schema=ORDER).values["valid"].tolist() == expected


def test_field_f1_is_that_of_the_leaves_with_their_paths() -> None:
    chosen = '{"name": "Ann", "tags": ["a", "b"], "size": {"w": 1, "h": 2}}'
    # 3 of 4 leaves are right, of 5: precision 3/4, recall 3/5, F1 2*3/(4+5).
    answer = '{"name": "Ann", "tags": ["a"], "size": {"w": 1.0, "h": 3}}'
    found = check([answer, chosen, "no", "{}"], chosen)
    assert found.values["field_f1"].tolist() == pytest.approx([6 / 9, 1.0, 0.0, 0.0])
    micro = found.details["micro"]
    assert (micro["precision"], micro["recall"]) == (pytest.approx(8 / 10), pytest.approx(8 / 20))
    assert micro["f1"] == pytest.approx(2 * 8 / (10 + 20))


@pytest.mark.parametrize(
    ("answer", "chosen", "is_same"),
    [("1", "1.0", True), ("1", "true", False), ("0", "false", False), ("[]", "{}", False), ("[]", "null", False),
     ('"1"', "1", False), ("[1, 2]", "[2, 1]", False), ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', True)],
)  # fmt: skip
def test_values_are_equal_as_in_json(answer: str, chosen: str, is_same: bool) -> None:
    assert bool(check([answer], chosen).values["field_f1"][0] == 1.0) is is_same


def test_extra_keys_are_those_that_the_chosen_answer_has_nowhere_at_that_place() -> None:
    chosen = '{"items": [{"id": 1}, {"id": 2, "note": "x"}], "id": 3}'
    answer = '{"items": [{"id": 1, "note": ""}, {"id": 2, "price": 1}, {"price": 2}], "total": 4}'
    found = check([answer, chosen], chosen)
    assert found.values["extra_keys"].tolist() == [2.0, 0.0]
    assert found.details["extra_keys"] == {"price": 1, "total": 1}


def test_a_chosen_answer_that_is_no_json_has_no_fields_to_compare() -> None:
    found = check(['{"a": 1}'], "plain text")
    assert isnan(found.values["field_f1"][0])
    assert isnan(found.values["extra_keys"][0])
    assert found.details["num_chosen_without_json"] == 1
    assert found.details["micro"]["f1"] is None
    assert json.dumps(dict(check(['{"a": 1}'], None).details), allow_nan=False)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "$.properties.a.type"),
        ({"properties": {"a": {"pattern": "("}}}, "$.properties.a.pattern"),
        ([1], "[1] is not of type"),
        ({"properties": {"a": {"$ref": "#/$defs/gone"}}}, "#/$defs/gone"),
        ({"definitions": {"x": {"items": {"$ref": "#/nowhere"}}}, "$ref": "#/definitions/x"}, "#/nowhere"),
        ({"$ref": "https://example.com/schema.json"}, "nothing is fetched"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "leads back to itself"),
    ],
)
def test_what_is_no_schema_is_refused_with_its_place(
    schema: object, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("asked the network"))
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    with pytest.raises(UserError) as raised:
        JsonSchemaTask.load(JsonSchemaTaskConfig(schema=str(path)))
    assert told in str(raised.value)
    assert str(path) in str(raised.value)


def test_references_within_the_schema_are_followed() -> None:
    schema = {"$id": "https://example.com/tree", "type": "array", "items": {"$ref": "#"}, "$comment": "a tree"}
    assert check(["[[], [[]]]", "[1]"], "[]", schema).values["valid"].tolist() == [True, False]
    elsewhere = {"$defs": {"n": {"$id": "n", "type": "number"}}, "$id": "https://example.com/a", "$ref": "n"}
    assert check(["1", '"1"'], "1", elsewhere).values["valid"].tolist() == [True, False]


def test_a_file_that_is_no_json_or_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        JsonSchemaTask.load(JsonSchemaTaskConfig(schema=str(tmp_path / "gone.json")))
    (tmp_path / "bad.json").write_text('{"type": object}')
    with pytest.raises(UserError, match="column 10"):
        JsonSchemaTask.load(JsonSchemaTaskConfig(schema=str(tmp_path / "bad.json")))


def test_an_older_draft_is_said(caplog: pytest.LogCaptureFixture) -> None:
    build_validator("here", {"$schema": "http://json-schema.org/draft-07/schema#"})
    assert "read as draft 2020-12" in caplog.text


def test_numbers_too_large_for_a_schema_are_not_valid() -> None:
    found = check(["9" * 4_000, "0.03", "-" + "9" * 400], "1", {"multipleOf": 0.01})
    assert found.values["valid"].tolist() == [False, True, False]
    assert found.details["schema_errors"] == {"a number too large to be checked": 2}


def test_a_pattern_that_never_ends_costs_its_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_schema, "LIMIT_S", 1)
    found = check(['"' + "a" * 40 + '!"', '"aaa"'], "1", {"pattern": "^(a+)+$"})
    assert found.values["valid"].tolist() == [False, True]
    assert found.details["schema_errors"] == {"not checked within 1 s": 1}


HOSTILE = [
    "",
    "\0",
    "\ud800",
    '"\\ud800"',
    '{"\\ud800\\u0000": 1}',
    "[" * 900 + "]" * 900,
    '{"a":' * 300 + "1" + "}" * 300,
    "[" * 90_000,
    "{" * 90_000,
    '"' * 90_000,
    "[" * 400 + ",".join(["1"] * 40_000) + "]" * 400,
    "[" + ",".join(f'{{"a":{number}}}' for number in range(9_000)) + "]",
    "1e999",
    "```" + "x" * 90_000 + "`",
    "```\n" * 20_000,
    "x" * 10_000_000,
]


def test_hostile_answers_neither_crash_nor_take_long() -> None:
    tree = {"anyOf": [{"type": "number"}, {"type": "array", "uniqueItems": True, "items": {"$ref": "#"}}, {}]}
    start = time.perf_counter()
    found = check(HOSTILE, "[1]", tree)
    assert time.perf_counter() - start < 20
    assert len(found.values["valid"]) == len(HOSTILE)
    json.dumps(dict(found.details), allow_nan=False, ensure_ascii=False).encode()
