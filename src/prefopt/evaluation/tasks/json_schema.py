"""Answers that must be JSON: whether they parse, obey a schema, and say what the chosen answer says."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import extend
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from prefopt.config.tasks import SETTING, JsonSchemaTaskConfig
from prefopt.data.strict_json import JSONError, parse
from prefopt.evaluation.tasks.json_answer import Parsed, parse_answer
from prefopt.evaluation.tasks.json_paths import Paths, keys_of
from prefopt.evaluation.tasks.task import Answered, Checked, quotable
from prefopt.process.errors import UserError, explained, shorten
from prefopt.process.paths import resolve
from prefopt.process.time_limit import time_limit
from prefopt.storage.reading import read_text

MAX_TOLD = 10
"""Kinds of errors, and names of extra keys, that the details list, the commonest first."""
MAX_ERRORS = 20
"""Errors of one answer that are counted."""
LIMIT_S = 10
"""Seconds in which an answer is checked: a pattern of the schema may take longer than a life."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JsonSchemaTask:
    """Checks that answers are JSON, obey a schema, and have the fields of the chosen answer.

    `field_f1` compares leaves: a path, such as `items[0].price`, with its value, which must be equal. Of each answer
    it is the harmonic mean of precision (share of its leaves that are in the chosen answer) and recall (share of the
    chosen answer's leaves that are in it); 0 if the answer is no JSON, none if the chosen one is not. The mean over
    answers is the macro F1: each answer counts the same, as an interval over prompts needs it. The details have the
    micro F1 beside it, of all leaves together, in which an answer with many fields counts more.

    The main number, by which a gain decides, is `field_f1` where most chosen answers are JSON objects or lists: `{}`
    parses, and obeys many a schema, and says nothing. Else it is `valid`, or without a schema `parses`.

    `extra_keys` counts the keys that no object at the same place of the chosen answer has.

    Attributes:
        name: By which reports tell it apart.
        validator: Of the schema; None: answers need only parse.
    """

    name: str
    validator: Validator | None = None

    @classmethod
    def load(cls, config: JsonSchemaTaskConfig) -> "JsonSchemaTask":
        """Reads the schema.

        Raises:
            UserError: The file cannot be read, or holds no JSON Schema; names the place in it.
        """
        if config.schema is None:
            return cls(config.name)
        where = f"{SETTING}: {config.name}: schema={config.schema}"
        path = resolve(config.schema)
        with explained(path, remedy=f"It is named by {where}."):
            text = read_text(path)
        try:
            return cls(config.name, build_validator(where, parse(text)))
        except JSONError as error:
            raise UserError(f"{where}: line {error.line}: {error}. Mend that line of the file.") from error

    def check(self, answers: Sequence[Answered]) -> Checked:
        parsed = [parse_answer(answered.answer) for answered in answers]
        compared = [_compare(each, answered.chosen) for each, answered in zip(parsed, answers, strict=True)]
        parses = np.array([each.failure is None for each in parsed], bool)
        values: dict[str, Any] = {"parses": parses}
        details: dict[str, Any] = {"failures": dict(Counter(each.failure for each in parsed if each.failure))}
        if self.validator is not None:
            errors = [self._errors(each) for each in parsed]
            valid = np.array([found is not None and not found for found in errors], bool)
            values = {"valid": valid, "parses": parses}
            counts = Counter(error for found in errors for error in set(found or ()))
            details["schema_errors"] = dict(counts.most_common(MAX_TOLD))
        of_fields = {"field_f1": np.array([each.f1 for each in compared], float)}
        has_fields = sum(each.has_fields for each in compared) > len(compared) / 2
        values = {**of_fields, **values} if has_fields else {**values, **of_fields}
        values["extra_keys"] = np.array([each.num_extra for each in compared], float)
        better = {"valid": True, "parses": True, "field_f1": True, "extra_keys": False}
        details |= _summarise(compared)
        num_without = details["num_chosen_without_json"] if has_fields else 0
        return Checked(values, {key: better[key] for key in values}, details, num_without)

    def _errors(self, parsed: Parsed) -> list[str] | None:
        """Returns what is wrong with a value by the schema, each as place and keyword; None if there is no value."""
        if parsed.failure is not None:
            return None
        assert self.validator is not None
        try:
            with time_limit(LIMIT_S):
                return [_tell(error) for error in islice(self.validator.iter_errors(parsed.value), MAX_ERRORS)]
        except RecursionError:
            return ["nested too deeply"]
        except TimeoutError:
            return [f"not checked within {LIMIT_S} s"]
        except OverflowError:
            return ["a number too large to be checked"]


def build_validator(where: str, schema: Any) -> Validator:
    """Returns the validator of a schema (Draft 2020-12); what `format` says is not checked, as the draft has it.

    References lead within the schema; nothing is fetched.

    Raises:
        UserError: It is no schema, or a reference leads nowhere; begins with `where`, and names the place.
    """
    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        place = f"at {error.json_path}, {shorten(error.message)}" if isinstance(error, SchemaError) else "too deep"
        raise UserError(
            f"{where}: is no JSON Schema of draft 2020-12: {place}. Mend that place in the file."
        ) from error
    dialect = schema.get("$schema", DIALECT) if isinstance(schema, dict) else DIALECT
    if dialect.rstrip("#") != DIALECT:
        logger.warning("%s: says that it is of %s; it is read as draft 2020-12", where, shorten(str(dialect)))
    resource = DRAFT202012.create_resource(schema)
    registry = EMPTY_REGISTRY.with_resource(resource.id() or "", resource)
    _check_references(where, resource, registry)
    validator: Validator = _VALIDATOR(schema, registry=registry)
    try:
        validator.is_valid(None)
    except RecursionError as error:
        raise UserError(
            f"{where}: a $ref leads back to itself, without a level of the answer in between. Let one of the schemas "
            "on the way describe something."
        ) from error
    return validator


def _check_references(where: str, root: "Resource[Any]", registry: "Registry[Any]") -> None:
    resolver, seen = registry.resolver_with_root(root), set[int]()
    pending = [(root, resolver)]
    while pending:
        resource, resolver = pending.pop()
        if id(resource.contents) in seen or not isinstance(resource.contents, dict):
            continue
        seen.add(id(resource.contents))
        for keyword in ("$ref", "$dynamicRef"):
            reference = resource.contents.get(keyword)
            if not isinstance(reference, str):
                continue
            try:
                found = resolver.lookup(reference)
            except (Unresolvable, ValueError) as error:
                raise UserError(
                    f"{where}: the {keyword} {shorten(repr(reference))} leads nowhere in the file, and nothing is "
                    "fetched. Put the definition into $defs of the file, and refer to it as '#/$defs/name'."
                ) from error
            pending.append((DRAFT202012.create_resource(found.contents), found.resolver))
        pending += [(inner, resolver.in_subresource(inner)) for inner in resource.subresources()]


def _unique_items(validator: Validator, wanted: bool, items: Any, schema: Any) -> Iterator[ValidationError]:
    """`uniqueItems` in linear time; the package compares every two objects."""
    if wanted and isinstance(items, list) and len(items) > 1:
        paths = Paths()
        if len({frozenset(paths.leaves(item)) for item in items}) < len(items):
            yield ValidationError("has equal items")


_VALIDATOR: Any = extend(Draft202012Validator, {"uniqueItems": _unique_items})  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Compared:
    """An answer's fields beside those of the chosen answer; counts are 0 where the chosen one is no JSON.

    Attributes:
        num_shared: Leaves of both.
        num_own: Leaves of the answer.
        num_chosen: Leaves of the chosen answer.
        extra: Keys that the chosen answer has not, each once for a place; None if one of the two is no JSON.
        has_fields: The chosen answer is a JSON object or a list.
    """

    num_shared: int
    num_own: int
    num_chosen: int
    extra: tuple[str, ...] | None
    has_fields: bool = False

    @property
    def f1(self) -> float:
        return 2 * self.num_shared / (self.num_own + self.num_chosen) if self.num_chosen else np.nan

    @property
    def num_extra(self) -> float:
        return np.nan if self.extra is None else len(self.extra)


def _compare(parsed: Parsed, chosen: str | None) -> Compared:
    wanted = Parsed(None, "empty") if chosen is None else parse_answer(chosen)
    if wanted.failure is not None:
        return Compared(0, 0, 0, None)
    paths = Paths()
    leaves, has_fields = paths.leaves(wanted.value), isinstance(wanted.value, dict | list)
    if parsed.failure is not None:
        return Compared(0, 0, len(leaves), None, has_fields)
    own = paths.leaves(parsed.value)
    known = keys_of(wanted.value, paths)
    extra = tuple(key for path, key in keys_of(parsed.value, paths).items() if path not in known)
    return Compared(len(own & leaves), len(own), len(leaves), extra, has_fields)


def _summarise(compared: Sequence[Compared]) -> Mapping[str, Any]:
    judged = [each for each in compared if each.num_chosen]
    extra = Counter(quotable(key) for each in judged for key in each.extra or ())
    shared, own, chosen = (
        sum(getattr(each, name) for each in judged) for name in ("num_shared", "num_own", "num_chosen")
    )
    return {
        "micro": {
            "precision": shared / own if own else None,
            "recall": shared / chosen if chosen else None,
            "f1": 2 * shared / (own + chosen) if chosen else None,
        },
        "extra_keys": dict(extra.most_common(MAX_TOLD)),
        "num_chosen_without_json": len(compared) - len(judged),
    }


def _tell(error: ValidationError) -> str:
    """Returns the place of an error, positions in lists apart, and the keyword: `items[].price: type`."""
    steps = ["[]" if isinstance(step, int) else f".{step}" for step in error.absolute_path]
    return quotable(f"{''.join(steps).lstrip('.') or '(whole)'}: {error.validator}")
