"""What differs between two attempts at one run, by the provenance that each of them left or would leave."""

from typing import Any

TOKENS = {
    "train": "data.train",
    "held_out": "the held-out data",
    "neutral_texts": "evaluation.neutral_texts",
    "pairs": "evaluation.pairs",
}
"""What a run reads beside its model: name in provenance.json -> for people."""
SURROUNDINGS = ("versions", "python", "hardware", "world_size", "git_commit", "git_diff_sha256")
"""What an attempt ran on; it may differ from one to the next."""
SHOWN_FILES = 4

Provenance = dict[str, Any]


def find_changed_input(before: Provenance, now: Provenance) -> str | None:
    """Says what a run reads that is not what it began with; None if all of it is. What was not recorded is not asked.

    Args:
        before: The earlier attempt's, empty if there was none.
        now: This attempt's.
    """
    old, new = (found.get("data", {}).get("sha256", {}) for found in (before, now))
    changed = [TOKENS.get(name, name) for name, digest in old.items() if new.get(name) != digest]
    if changed:
        verb = "has" if len(changed) == 1 else "have"
        return f"{' and '.join(changed)} {verb} changed since this run began (other tokens)"
    return find_changed_model(before, now)


def find_changed_model(before: Provenance, now: Provenance) -> str | None:
    """As `find_changed_input`, of the model alone, whose files are named; an earlier version recorded only some."""
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
    """The packages whose versions differ, as `torch 2.11.0 -> 2.13.0`."""
    old, new = before.get("versions", {}), now.get("versions", {})
    names = [name for name in {**old, **new} if old and old.get(name) != new.get(name)]
    return [f"{name} {old.get(name, 'none')} -> {new.get(name, 'none')}" for name in names]


def with_earlier(before: Provenance, now: Provenance) -> Provenance:
    """`now`, and under `earlier` what attempts before it ran on, where that was something else; the oldest first."""
    earlier: list[Provenance] = before.get("earlier", [])
    last = {name: before[name] for name in SURROUNDINGS if name in before}
    if any(now.get(name) != value for name, value in last.items()):
        earlier = [*earlier, last]
    return {**now, "earlier": earlier} if earlier else now
