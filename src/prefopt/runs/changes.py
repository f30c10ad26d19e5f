"""Compares two attempts at one run by their provenance.json."""

from collections.abc import Mapping
from typing import Any

from prefopt.config.schema import TrainConfig
from prefopt.data.sources import find_changed_files, sources_of

TOKENS = {
    "train": "data.train",
    "held_out": "the held-out data",
    "neutral_texts": "evaluation.neutral_texts",
    "pairs": "evaluation.pairs",
}
"""The data that a run reads: name in provenance.json -> name in messages."""
SETTINGS = {
    "train": "data.train",
    "held_out": "data.held_out",
    "pairs": "evaluation.pairs",
    "neutral_texts": "evaluation.neutral_texts",
}
"""The setting that names these data."""
SURROUNDINGS = ("versions", "python", "hardware", "world_size", "git_commit", "git_diff_sha256")
"""Entries of provenance.json for code, packages and hardware, which may differ between attempts."""
SHOWN_FILES = 4
PUT_BACK = "Put it back as it was"
GO_BACK = "go on with the version that began it"

Provenance = dict[str, Any]


def find_changed_input(before: Provenance, now: Provenance) -> str | None:
    """Says which input of a run has changed since it began, and how it can go on; None if none has.

    Inputs that the earlier attempt did not record are not compared.

    Args:
        before: Provenance of the earlier attempt, empty if there was none.
        now: Provenance of this attempt.
    """
    tokens = _find_changed_tokens(before, now)
    if tokens is not None:
        return tokens
    model = find_changed_model(before, now)
    return None if model is None else f"{model}. {PUT_BACK}"


def _find_changed_tokens(before: Provenance, now: Provenance) -> str | None:
    """Says which data have other tokens, and why: another file, tokenizer, or version of the code that reads them."""
    old, new = before.get("data", {}), now.get("data", {})
    found = new.get("sha256", {})
    names = [TOKENS.get(name, name) for name, digest in old.get("sha256", {}).items() if found.get(name) != digest]
    if not names:
        return None
    is_one = len(names) == 1
    what, them, are, have = " and ".join(names), *(("it", "is", "has") if is_one else ("them", "are", "have"))
    changed = f"{what} {have} changed since this run began (other tokens)"
    is_same_reader = old.get("reader") == new.get("reader") and not find_changed_versions(before, now)
    reads = f"this version reads {them} otherwise{_describe_code(before, now)}"
    files = old.get("files", {})
    if not files or None in files.values():  # recorded by an earlier version, or data of the hub
        return f"{changed}. {PUT_BACK}" if is_same_reader else f"{changed}, or {reads}. {PUT_BACK}, {GO_BACK}"
    if files != new.get("files"):
        return f"{changed}. {PUT_BACK}"
    if old.get("tokenizer") != new.get("tokenizer"):
        return f"the tokenizer or its chat template has changed since this run began (other tokens). {PUT_BACK}"
    as_before = f"{what} {are} as when this run began, but"
    if is_same_reader:
        return f"{as_before} made other tokens: does the chat template write the date? Put a fixed one there"
    return f"{as_before} {reads}. {GO_BACK.capitalize()}"


def _describe_code(before: Provenance, now: Provenance) -> str:
    """Names, in brackets, the package versions and commits that changed, as far as known."""
    parts = find_changed_versions(before, now)
    commits = [str(found.get("git_commit") or "none")[:10] for found in (before, now)]
    if commits[0] != commits[1]:
        parts.append(f"commit {commits[0]} -> {commits[1]}")
    return f" ({'; '.join(parts)})" if parts else ""


def find_changed_data(config: TrainConfig, files: Mapping[str, object]) -> str | None:
    """Says which data files have changed since a run, by their digests in its provenance; None if none is known to.

    Only files are compared: a run that is done is to be told of quickly, without a tokenizer.
    """
    specs = sources_of(config)
    found = find_changed_files(specs, files)
    parts = [f"{SETTINGS[name]}: {_describe_spec(specs[name])} {what}" for name, what in found.items()]
    return " and ".join(parts) or None


def _describe_spec(spec: object) -> str:
    first, *others = spec if isinstance(spec, (list, tuple)) else [spec]
    return f"one of {first} and {len(others)} more" if others else str(first)


def find_changed_model(before: Provenance, now: Provenance) -> str | None:
    """Says which files of the model have changed; None if none has. Earlier versions recorded only some files."""
    old, new = before.get("model", {}), now.get("model", {})
    known, found = old.get("sha256") or {}, new.get("sha256") or {}
    names = known if "fingerprint" not in old else {**known, **found}
    files = sorted(name for name in names if known.get(name) != found.get(name))
    if not files:
        return None
    more = f" and {len(files) - SHOWN_FILES} more files" if len(files) > SHOWN_FILES else ""
    text = f"model.path={new.get('path')} has changed since this run began ({', '.join(files[:SHOWN_FILES])}{more})"
    commit = old.get("commit")
    if commit in (None, new.get("commit")):
        return text
    return f"{text}: it was commit {commit}, which model.revision={commit} names"


def find_changed_versions(before: Provenance, now: Provenance) -> list[str]:
    """Lists the packages whose versions differ, such as `torch 2.11.0 -> 2.13.0`."""
    old, new = before.get("versions", {}), now.get("versions", {})
    names = [name for name in {**old, **new} if old and old.get(name) != new.get(name)]
    return [f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}" for name in names]


def with_earlier(before: Provenance, now: Provenance) -> Provenance:
    """Returns `now` with the differing `SURROUNDINGS` of earlier attempts under `earlier`, oldest first."""
    earlier: list[Provenance] = before.get("earlier", [])
    last = {name: before[name] for name in SURROUNDINGS if name in before}
    if any(now.get(name) != value for name, value in last.items()):
        earlier = [*earlier, last]
    return {**now, "earlier": earlier} if earlier else now
