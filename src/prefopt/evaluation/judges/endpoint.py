"""A judge behind an OpenAI-compatible server: a language model that writes reasons and a verdict."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.config.judges import SETTING, EndpointJudgeConfig
from prefopt.evaluation.endpoint import Endpoint, Reply
from prefopt.evaluation.judges.judge import Matchup
from prefopt.evaluation.judges.rubric import BY_MARK, Rubric
from prefopt.evaluation.statistics import Floats
from prefopt.process.errors import UserError

logger = logging.getLogger(__name__)

MARK = re.compile(r"\[\[([ABC])\]\]")
VERDICTS = {"A": 1.0, "B": -1.0, "C": 0.0}
FEWEST_PARSED = 0.5
"""Share of replies with a mark below which those that have one are no fair sample, and none counts."""


class EndpointJudge:
    """The verdict is the last mark [[A]], [[B]] or [[C]] in a reply; a reply without one, or one cut off, is none.

    Where most replies have none, no verdict counts: those that have one are then the easy matchups, or accidents. This
    is said, and is no error, since the other judges and the answers of an evaluation are worth their time without it.

    Args:
        config: Its name and the length of its replies.
        endpoint: The model.
        rubric: What it is asked.
    """

    sees_order = True

    def __init__(self, config: EndpointJudgeConfig, endpoint: Endpoint, rubric: Rubric) -> None:
        self.name = config.name
        self._config, self._endpoint, self._rubric = config, endpoint, rubric
        self._num_read = self._num_parsed = self._num_cut = 0
        self._refusal: str | None = None

    @classmethod
    def connect(cls, config: EndpointJudgeConfig, cache: Path) -> "EndpointJudge":
        """Returns the judge; no request is sent yet.

        Args:
            config: Server, model and rubric.
            cache: Folder in which its replies are kept.

        Raises:
            UserError: The rubric is none or asks for no marks, the key is not set, or the package openai is missing.
        """
        where = f"{SETTING}: {config.name}:"
        rubric = Rubric.of(config.name, config.rubric, BY_MARK)
        missing = [mark for mark in ("[[A]]", "[[B]]") if mark not in rubric.text]
        if missing:
            raise UserError(
                f"{where} rubric: does not ask for {' and '.join(missing)}, by which the verdict is found in a reply. "
                "Let it end so: End with [[A]] if answer A is better, [[B]] if answer B is, [[C]] if neither is."
            )
        endpoint = Endpoint(
            where,
            url=config.endpoint,
            model=config.model,
            cache=cache / "replies",
            key_env=config.key_env,
            max_requests=config.max_requests,
            concurrency=config.concurrency,
        )
        return cls(config, endpoint, rubric)

    def read(self, matchups: Sequence[Matchup]) -> Floats:
        """Returns a verdict per matchup.

        Raises:
            UserError: As `Endpoint.chat`.
        """
        conversations = [[{"role": "user", "content": self._rubric.fill(matchup)}] for matchup in matchups]
        replies = self._endpoint.chat(conversations, max_tokens=self._config.max_new_tokens, temperature=0.0)
        verdicts = np.array([_parse(reply) for reply in replies], float)
        num_parsed, num_cut = int((~np.isnan(verdicts)).sum()), sum(not reply.finished for reply in replies)
        self._num_read += len(replies)
        self._num_parsed += num_parsed
        self._num_cut += num_cut
        if num_parsed < len(replies):
            cut = f"; {num_cut} are cut at max_new_tokens={self._config.max_new_tokens}" if num_cut else ""
            missing = f"{len(replies) - num_parsed} of {len(replies)} replies have no verdict{cut}"
            logger.warning("%s: %s: %s", SETTING, self.name, missing)
            if num_parsed < FEWEST_PARSED * len(replies):
                example = next(reply.text for reply in replies if np.isnan(_parse(reply)))
                self._refusal = f"{missing}, so that none counts; one ends: {example[-200:]!r}"
                logger.warning("%s: %s: gives no verdicts, since %s", SETTING, self.name, self._refusal)
                return np.full(len(replies), np.nan)
        return verdicts

    def describe(self) -> Mapping[str, Any]:
        """Returns server, model, rubric, and how many replies had a verdict; `refused` says why none counts."""
        return {
            "kind": "endpoint",
            "endpoint": self._endpoint.url,
            "model": self._endpoint.model,
            "rubric_sha256": self._rubric.sha256,
            "max_new_tokens": self._config.max_new_tokens,
            "num_read": self._num_read,
            "num_parsed": self._num_parsed,
            "num_unparsed": self._num_read - self._num_parsed,
            "num_cut": self._num_cut,
            "num_requests": self._endpoint.num_sent,
            "num_kept": self._endpoint.num_kept,
            **({} if self._refusal is None else {"refused": self._refusal}),
        }


def _parse(reply: Reply) -> float:
    marks = MARK.findall(reply.text) if reply.finished else []  # what was cut may have gone on to another mark
    return VERDICTS[marks[-1]] if marks else float("nan")
