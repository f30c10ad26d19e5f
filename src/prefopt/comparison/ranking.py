"""Builds from run records the content that every output shows: ranked rows, runs without a rank, warnings, links."""

import shlex
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from prefopt.comparison.groups import Group, find_duplicates, group_by_seed
from prefopt.comparison.metrics import SHOWN
from prefopt.comparison.noise import Difference, Method, Winner, compare_with_first
from prefopt.comparison.records import DONE, NOT_BEGUN, Mode, RunRecord, WandbPlace
from prefopt.comparison.settings import differing, short_names
from prefopt.comparison.wins import why_not_of_group
from prefopt.evaluation.constraint import SETTING
from prefopt.evaluation.metrics import ACCURACY, BY_KEY, LOSS, WIN_RATE, Better, Metric
from prefopt.tracking.credentials import base_url

REFUSED = "do_not_ship"
MAX_WARNINGS, MAX_LINKS = 20, 5
WITHIN_NOISE = "within noise of #1"
NOT_COMPARED = "not compared"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ranking.

    Attributes:
        group: One run, or the seeds of one configuration.
        rank: From 1; equal values share a rank; None without the metric.
        is_tied: Whether another row has the same rank.
        is_first: Whether it is the row that the others are compared with.
        difference: Difference to the first row; None for the first row itself, and if it is not known.
        has_other_data: Whether its held-out data differ from those of the first row.
        verdict: The comparison with the first row, in words; empty without a rank.
        refusal: Why it stands after all other rows, whatever its numbers; empty for most rows.
        not_compared: Why its win rate is not compared with that of the first row; empty for most rows.
    """

    group: Group
    rank: int | None
    is_tied: bool
    is_first: bool
    difference: Difference | None
    has_other_data: bool
    verdict: str
    refusal: str = ""
    not_compared: str = ""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ranked rows; `winner` and `has_seed_luck` are those of `Comparison`."""

    rows: list[Row]
    winner: Winner | None
    has_seed_luck: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """The content of a comparison, the same for every output.

    Attributes:
        title: Names what is compared.
        runs: All runs, in the order in which they were found.
        rows: The finished runs, grouped by seed, best first; those that are refused come after all others.
        winner: What the first row's number is worth; None if it was not chosen from several.
        has_seed_luck: Whether the intervals of the differences contain the luck of a training's seed.
        unranked: The other runs.
        metric: The metric that `rows` are ranked by.
        columns: The metrics that the table shows.
        settings: The settings that differ: dotted name -> header of its column.
        warnings: Sentences that a reader must know.
        links: Sentences on how to open the same runs in Weights & Biases.
    """

    title: str
    runs: list[RunRecord]
    rows: list[Row]
    unranked: list[RunRecord]
    metric: Metric
    columns: list[Metric]
    settings: dict[str, str]
    warnings: list[str]
    links: list[str]
    winner: Winner | None = None
    has_seed_luck: bool = False

    @property
    def is_open(self) -> bool:
        """Whether any run may still change."""
        return any(run.is_open for run in self.runs)

    @property
    def methods(self) -> list[Method]:
        """The methods by which differences were judged, each once."""
        return list(dict.fromkeys(row.difference.method for row in self.rows if row.difference is not None))


def build_comparison(
    runs: Sequence[RunRecord], *, title: str, metric: Metric | None = None, folders: Sequence[str] = ()
) -> Comparison:
    """Groups, ranks and judges `runs`.

    Args:
        runs: Records with distinct names.
        title: Names what is compared.
        metric: Metric to rank by; None: preference accuracy, or the loss if runs have a loss and no accuracy.
        folders: The compared folders as given, for the commands in `links`.
    """
    runs = list(runs)
    metric = metric or _default_metric(runs)
    ranking = rank(group_by_seed(runs), metric)
    rows = ranking.rows
    columns = [BY_KEY[key] for key in dict.fromkeys((metric.key, *SHOWN))]
    return Comparison(
        title=title,
        runs=runs,
        rows=rows,
        unranked=[run for run in runs if not run.is_ranked],
        metric=metric,
        columns=[column for column in columns if any(row.group.spread(column) for row in rows)],
        settings=short_names(_differing(runs)),
        warnings=_warnings(runs, rows, metric),
        links=describe_links(runs, folders),
        winner=ranking.winner,
        has_seed_luck=ranking.has_seed_luck,
    )


def rank(groups: Sequence[Group], metric: Metric) -> Ranking:
    """Ranks the groups, best first, and compares them with the first; those without the metric are last and unranked.

    A group that is refused stands after all that are not: its report says that it is not to be shipped, or it breaks
    the constraint of its sweep.
    """
    refusals = {id(group): find_refusal(group) for group in groups}
    keys = {id(group): metric.badness(found.mean) for group in groups if (found := group.spread(metric)) is not None}
    measured = [group for group in groups if id(group) in keys]
    measured.sort(key=lambda group: (bool(refusals[id(group)]), keys[id(group)]))  # stable: ties stay as given
    order = [(bool(refusals[id(group)]), keys[id(group)]) for group in measured]
    may_win = [not refused for refused, _ in order]
    judged = compare_with_first(measured, metric, may_win if any(may_win) else [True] * len(measured))
    rows = []
    for place, group in enumerate(measured):
        first, end = bisect_left(order, order[place]), bisect_right(order, order[place])
        not_compared = why_not_of_group(group, measured[0]) if metric.key == WIN_RATE and place else ""
        rows.append(
            Row(
                group,
                rank=first + 1,
                is_tied=end - first > 1,
                is_first=place == 0,
                difference=judged.differences[place],
                has_other_data=_data_of(group) != _data_of(measured[0]),
                verdict="best" if place == 0 else _verdict(judged.differences[place], metric, not_compared),
                refusal=refusals[id(group)],
                not_compared=not_compared,
            )
        )
    rest = [
        Row(group, None, False, False, None, False, "", refusals[id(group)])
        for group in groups
        if id(group) not in keys
    ]
    return Ranking(rows + rest, judged.winner, judged.has_seed_luck)


def _verdict(difference: Difference | None, metric: Metric, not_compared: str) -> str:
    if difference is None:
        return NOT_COMPARED if not_compared else "not known"
    if difference.is_noise:
        return WITHIN_NOISE
    return "better" if (difference.value > 0) is (metric.better is Better.higher) else "worse"


def find_refusal(group: Group) -> str:
    """Returns why a group may not be the first of a ranking; empty if it may.

    One seed that is refused is enough: the same configuration may end like that again.
    """
    if any(member.decision == REFUSED for member in group.members):
        return "its report says do not ship"
    for member in group.members:
        for key, limit in member.constraint.items():
            value = abs(member.metrics[key].value) if key in member.metrics else 0.0
            if value > limit:
                return f"{key} {value:.3g} is above {limit:g}"
    return ""


def count_states(runs: Sequence[RunRecord]) -> dict[str, int]:
    """Returns state -> number of runs, `done` first and `not begun` last."""
    found = [run.state for run in runs]
    order = sorted(set(found), key=lambda state: (state != DONE, state == NOT_BEGUN, state))
    return {state: found.count(state) for state in order}


def describe_links(runs: Sequence[RunRecord], folders: Sequence[str]) -> list[str]:
    """Returns one line per W&B group that is online, and the command that uploads the offline runs."""
    places = list(dict.fromkeys(run.wandb for run in runs if run.wandb is not None))
    urls = list(dict.fromkeys(_group_url(place) for place in places if place.mode is Mode.online))
    lines = [f"In W&B: {url}" for url in urls[:MAX_LINKS]]
    lines += [f"... and {len(urls) - MAX_LINKS} more groups in W&B"] if len(urls) > MAX_LINKS else []
    num_offline = sum(run.wandb is not None and run.wandb.mode is Mode.offline for run in runs)
    if num_offline:
        what, them = ("1 run is", "it") if num_offline == 1 else (f"{num_offline} runs are", "them")
        command = shlex.join(["prefopt", "sync", *folders])
        lines.append(f"{what} recorded offline. To open {them} in W&B: {command}")
    return lines


def _group_url(place: WandbPlace) -> str:
    if place.url is not None:
        return place.url
    parts = [quote(place.entity, safe="") if place.entity else "<your entity>", quote(place.project, safe="")]
    group = f"/groups/{quote(place.group, safe='')}" if place.group else ""
    return "/".join([base_url().replace("://api.", "://").rstrip("/"), *parts]) + group


def _differing(runs: Sequence[RunRecord]) -> list[str]:
    """The settings that differ; once any run has begun, only those that some begun run has."""
    begun = {key for run in runs if run.state != NOT_BEGUN for key in run.settings}
    return [key for key in differing(run.settings for run in runs) if key in begun or not begun]


def _default_metric(runs: Sequence[RunRecord]) -> Metric:
    has_accuracy = any(ACCURACY in run.metrics for run in runs)
    has_loss = any(LOSS in run.metrics for run in runs)
    return BY_KEY[LOSS if has_loss and not has_accuracy else ACCURACY]


def _data_of(group: Group) -> frozenset[str | None]:
    return frozenset(member.held_out_data for member in group.members)


def _warnings(runs: Sequence[RunRecord], rows: Sequence[Row], metric: Metric) -> list[str]:
    found = [f"{run.name}: {problem}" for run in runs for problem in run.problems]
    gone = [run.name for run in runs if run.is_abandoned]
    if gone:
        found.append(
            f"running by their status, but no process is behind them: {_some(gone)}. The same command goes on."
        )
    found += [
        f"{one} has the configuration and seed of {other}: no further seed" for one, other in find_duplicates(runs)
    ]
    more = len(found) - MAX_WARNINGS
    shortened = [*found[:MAX_WARNINGS], f"... and {more} more such lines"] if more > 0 else found
    return _about_the_best(rows, metric) + _about_missing(runs) + shortened


def _about_the_best(rows: Sequence[Row], metric: Metric) -> list[str]:
    lines = []
    if rows and rows[0].rank is not None and rows[0].refusal:
        which = "#1 is" if len(rows) == 1 else "all rows are, #1 too,"
        lines.append(f"by {metric.key}, {which} not one to choose: {_why(rows[0])}.")
    elif rows and rows[0].rank is not None:
        ahead = [row for row in rows if row.rank is not None and row.refusal and _is_ahead(row, rows[0], metric)]
        if ahead:
            more = f", and so would {len(ahead) - 1} more" if len(ahead) > 1 else ""
            lines.append(
                f"by {metric.key} alone, {ahead[0].group.name} would be before #1, but it stands after all others "
                f"({_why(ahead[0])}){more}."
            )
    if rows and rows[0].rank is None:
        lines.append(f"no run that is done has {metric.key}, so nothing is ranked; see --rank-by")
    others = sum(row.has_other_data for row in rows)
    if others:
        lines.append(
            f"{others} of {len(rows)} rows were measured on other held-out data than #1 (marked *): "
            "their difference may be the data's."
        )
    return lines


def _is_ahead(row: Row, first: Row, metric: Metric) -> bool:
    ours, theirs = row.group.spread(metric), first.group.spread(metric)
    return ours is not None and theirs is not None and metric.badness(ours.mean) < metric.badness(theirs.mean)


def _why(row: Row) -> str:
    reason = next(
        (member.reason for member in row.group.members if member.decision == REFUSED and member.reason), None
    )
    return row.refusal if reason is None else f"{row.refusal}: {reason.rstrip('.')}"


def _about_missing(runs: Sequence[RunRecord]) -> list[str]:
    """Says of which runs something was not measured that the comparison takes into account."""
    lines = []
    ranked = [run for run in runs if run.is_ranked]
    for key in dict.fromkeys(key for run in ranked for key in run.constraint):
        lacking = [run.name for run in ranked if key in run.constraint and key not in run.metrics]
        if lacking:
            lines.append(f"{SETTING}.{key} could not be checked, since the report does not have it: {_some(lacking)}.")
    old = [run.name for run in ranked if run.outcomes is not None and run.outcomes.prompts is None]
    if old:
        lines.append(
            "pairs.jsonl of an earlier version does not tell which pairs share a prompt, so that every pair counts as "
            f"one: intervals may be too narrow. prefopt evaluate run=<folder> writes it again: {_some(old)}."
        )
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
