"""Builds from run records the content that every output shows: ranked rows, runs without a rank, warnings, links."""

import shlex
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from prefopt.comparison.groups import Group, find_duplicates, group_by_seed
from prefopt.comparison.metrics import SHOWN
from prefopt.comparison.noise import Difference, Method, compare_groups
from prefopt.comparison.records import DONE, NOT_BEGUN, Mode, RunRecord, WandbPlace
from prefopt.comparison.settings import differing, short_names
from prefopt.evaluation.metrics import ACCURACY, BY_KEY, LOSS, Metric
from prefopt.tracking.credentials import base_url

SHIPPED, REFUSED = "ship", "do_not_ship"
MAX_WARNINGS, MAX_LINKS = 20, 5
WITHIN_NOISE = "within noise of #1"


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
    """

    group: Group
    rank: int | None
    is_tied: bool
    is_first: bool
    difference: Difference | None
    has_other_data: bool

    @property
    def verdict(self) -> str:
        """The comparison with the first row, in words; empty without a rank."""
        if self.is_first or self.rank is None:
            return "best" if self.is_first else ""
        if self.difference is None:
            return "not known"
        return WITHIN_NOISE if self.difference.is_noise else "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The content of a comparison, the same for every output.

    Attributes:
        title: Names what is compared.
        runs: All runs, in the order in which they were found.
        rows: The finished runs, grouped by seed, best first.
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
    rows = rank(group_by_seed(runs), metric)
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
    )


def rank(groups: Sequence[Group], metric: Metric) -> list[Row]:
    """Ranks the groups, best first, with differences to the first; those without the metric are last and unranked."""
    measured = [(metric.badness(found.mean), group) for group in groups if (found := group.spread(metric)) is not None]
    measured.sort(key=lambda pair: pair[0])  # stable: ties stay in the order given
    keys = [key for key, _ in measured]
    rows = []
    for key, group in measured:
        best = measured[0][1]
        first, end = bisect_left(keys, key), bisect_right(keys, key)
        rows.append(
            Row(
                group,
                rank=first + 1,
                is_tied=end - first > 1,
                is_first=group is best,
                difference=None if group is best else compare_groups(best, group, metric),
                has_other_data=_data_of(group) != _data_of(best),
            )
        )
    rest = [group for group in groups if group.spread(metric) is None]
    return rows + [Row(g, None, is_tied=False, is_first=False, difference=None, has_other_data=False) for g in rest]


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
        some = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
        found.append(f"running by their status, but no process is behind them: {some}. The same command goes on.")
    found += [
        f"{one} has the configuration and seed of {other}: no further seed" for one, other in find_duplicates(runs)
    ]
    more = len(found) - MAX_WARNINGS
    shortened = [*found[:MAX_WARNINGS], f"... and {more} more such lines"] if more > 0 else found
    return _about_the_best(rows, metric) + shortened


def _first_to_ship(rows: Sequence[Row]) -> str:
    place = next((i for i, row in enumerate(rows) if list(row.group.decisions) == [SHIPPED]), None)
    return (
        "No row is to be shipped." if place is None else f"The first row that is to be shipped is #{rows[place].rank}."
    )


def _about_the_best(rows: Sequence[Row], metric: Metric) -> list[str]:
    lines = []
    if rows and rows[0].rank is not None:
        refused = [member for member in rows[0].group.members if member.decision == REFUSED]
        if refused:
            why = f": {refused[0].reason}" if refused[0].reason else "."
            lines.append(
                f"#1 by {metric.key} is not to be shipped, as its own report says{why} {_first_to_ship(rows)}"
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
