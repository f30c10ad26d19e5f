"""Reward against drift of iterative DPO, over beta and rounds, where a rule says which of two answers is better.

python -m benchmarks.frontier <folder of stories260K_hf>
python -m benchmarks.frontier <folder of stories260K_hf> --write

A model of 260,000 parameters ends stories that it has begun itself. The rule counts happy words and exclamation marks,
less a tenth of all words: without that, the longest ending wins, and soon none ends.
The stages are those of `prefopt submit chain=iterative_dpo`, executed in this process: the newest model answers the
prompts, the rule makes pairs of its answers, DPO trains that model on them. After each round, the model ends stories
that no round has seen. Their mean reward and win rate are set against what has changed besides: the divergence of the
model from the very first one on these endings, and its perplexity on whole stories of the first one. The first round's
answers are sampled once for all betas.
"""

import argparse
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from math import exp, sqrt
from pathlib import Path
from statistics import mean, stdev
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.results import write_results
from prefopt.cluster.planning import plan_submission
from prefopt.config.cluster import SUBMIT
from prefopt.config.load import load_config
from prefopt.config.overrides import assign, typed
from prefopt.config.schema import TrainConfig
from prefopt.evaluation.measure import seeds
from prefopt.evaluation.on_policy import continue_text
from prefopt.evaluation.sampling import Answer, Question, generate
from prefopt.evaluation.scoring import Scorer, completion
from prefopt.models.load import load_model, load_tokenizer
from prefopt.process.errors import UserError
from prefopt.runs.directory import RunDirectory
from prefopt.runs.provenance import SAMPLE
from prefopt.sample import main as sample
from prefopt.submit import split
from prefopt.train import main as train

PACKAGES = ("torch", "transformers", "trl")
HAPPY = re.compile(
    r"\b(happy|fun|smile[sd]?|love[sd]?|laugh(ed)?|excited|proud|hug(ged)?|play(ed)?|friends?)\b|!", re.IGNORECASE
)
WORD_COSTS = 0.1
BOS, EOS = 1, 2
"""Of stories260K, which ends a story with either: it begins the next one instead of stopping."""
STORY_TOKENS, ENDING_TOKENS, ANSWER_TOKENS = 400, 40, 100
"""Most tokens of a story; those of its end that a prompt lacks; most of an answer."""
NUM_NEUTRAL = 30
SEEDS = {"stories": 1, "measured": 2}


@dataclass(frozen=True)
class Point:
    """A model on the frontier.

    Attributes:
        beta: Of DPO.
        round: The number of rounds that trained it; 0 for the first model.
        pairs: On which the last of them trained.
        reward: Mean over its endings of held-out stories.
        reward_se: Standard error of that mean.
        win_rate: Share of stories whose ending has a higher reward than the first model's; a tie is half a win.
        kl_per_token: Divergence from the first model on these endings, nats per token.
        kl_per_ending: The same, nats per ending.
        neutral_ratio: Perplexity on whole stories of the first model, as a multiple of that model's own.
        tokens: Mean length of the endings.
        finished: Share of endings that ended within the limit of tokens.
        seconds: For sampling and training of the last round; where its pairs were sampled before, for training.
    """

    beta: float
    round: int
    pairs: int
    reward: float
    reward_se: float
    win_rate: float
    kl_per_token: float
    kl_per_ending: float
    neutral_ratio: float
    tokens: float
    finished: float
    seconds: float


def reward(prompt: str, answer: str) -> float:
    """The rule: points of an answer."""
    return sum(1 for _ in HAPPY.finditer(answer)) - WORD_COSTS * len(answer.split())


class Experiment:
    """Stories of a model, without their ends.

    Attributes:
        model: Copy of its folder, in which both tokens that end a story are known as ends.
        prompts: Texts that it is asked to go on with in training.
        held_out: Token ids of texts that it is asked to go on with in measurements.
        neutral: Token ids of whole stories.
        told: How the first model goes on with `held_out`.
    """

    def __init__(self, source: Path, folder: Path, num_prompts: int, num_held_out: int) -> None:
        self.model = Path(shutil.copytree(source, folder / "model", copy_function=shutil.copyfile))
        self.model.chmod(0o755)
        settings = json.loads((self.model / "generation_config.json").read_text())
        (self.model / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [BOS, EOS]}))
        self.tokenizer = load_tokenizer(self._configure(self.model).model)
        self._base = self.load(self.model)
        stories = self._tell(num_prompts + num_held_out)
        openings = [story[:-ENDING_TOKENS] for story in stories]
        self.held_out = openings[num_prompts:]
        self.neutral = stories[num_prompts:][:NUM_NEUTRAL]
        self.prompts = [self._text(opening) for opening in openings[:num_prompts]]
        self.told = self.end_stories(self._base)
        self._perplexity = self._measure_neutral(self._base)

    def measure(self, folder: Path, beta: float, number: int, pairs: int, seconds: float) -> Point:
        """Returns what is true of the model in a folder."""
        scorer = self._base if number == 0 else self.load(folder)
        told = self.end_stories(scorer)
        own = [completion(prompt, answer.ids) for prompt, answer in zip(self.held_out, told, strict=True)]
        scores, base = scorer.score(own), self._base.score(own)
        nats = float((scores.logps - base.logps).sum())
        rewards = [[reward("", answer.text) for answer in answers] for answers in (told, self.told)]
        wins = [(a > b) + 0.5 * (a == b) for a, b in zip(*rewards, strict=True)]
        return Point(
            beta=beta,
            round=number,
            pairs=pairs,
            reward=mean(rewards[0]),
            reward_se=stdev(rewards[0]) / sqrt(len(told)),
            win_rate=mean(wins),
            kl_per_token=nats / float(scores.lengths.sum()),
            kl_per_ending=nats / len(told),
            neutral_ratio=self._measure_neutral(scorer) / self._perplexity,
            tokens=mean(len(answer.ids) for answer in told),
            finished=mean(answer.finished for answer in told),
            seconds=seconds,
        )

    def load(self, folder: Path) -> Scorer:
        """Returns the model in a folder, ready to write and to score."""
        config = self._configure(folder)
        return Scorer.of(load_model(config.model), config, self.tokenizer.pad_token_id)

    @staticmethod
    def _configure(folder: Path) -> TrainConfig:
        return load_config(["model=hf", assign("model.path", str(folder)), "data=files", "data.train=none"])

    def _tell(self, number: int) -> list[list[int]]:
        """Returns different whole stories of the first model, which begin with BOS."""
        whole: dict[tuple[int, ...], None] = {}
        own = seeds(SEEDS["stories"])
        while len(whole) < number:
            wanted = [Question([BOS], next(own)) for _ in range(number)]
            told = generate(self._base, self.tokenizer, wanted, max_new_tokens=STORY_TOKENS)
            ended = (answer.ids[:-1] for answer in told if answer.finished and len(answer.ids) > 3 * ENDING_TOKENS)
            whole |= dict.fromkeys((BOS, *ids) for ids in ended)
        return [list(story) for story in [*whole][:number]]

    def end_stories(self, scorer: Scorer) -> list[Answer]:
        """Returns a model's endings of the held-out stories; equal seeds, so that models differ only by themselves."""
        asked = [Question(p, seed) for p, seed in zip(self.held_out, seeds(SEEDS["measured"]), strict=False)]
        told = generate(scorer, self.tokenizer, asked, max_new_tokens=ANSWER_TOKENS)
        return [
            Answer(answer.ids, answer.finished, continue_text(question.prompt, answer.ids, self.tokenizer))
            for question, answer in zip(asked, told, strict=True)
        ]

    def _measure_neutral(self, scorer: Scorer) -> float:
        scores = scorer.score([completion(story[:1], story[1:]) for story in self.neutral])
        return exp(-float(scores.logps.sum() / scores.lengths.sum()))

    def _text(self, ids: list[int]) -> str:
        return "<s>" + str(self.tokenizer.decode(ids, skip_special_tokens=True))


def climb(experiment: Experiment, folder: Path, beta: float, rounds: int, num_samples: int) -> list[Point]:
    """Executes the stages of a chain, and measures the model after each round."""
    asked = folder / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in experiment.prompts))
    judge = {"kind": "rule", "function": "benchmarks.frontier:reward"}
    given = [
        "chain=iterative_dpo",
        f"chain.rounds={rounds}",
        f"chain.num_samples={num_samples}",
        "cluster=local",
        "model=hf",
        assign("model.path", str(experiment.model)),
        "data=files",
        assign("data.train", str(asked)),
        "data.held_out_fraction=0",
        "data.max_length=512",
        *shlex.split(typed("evaluation.judges", [judge])),
        f"evaluation.max_new_tokens={ANSWER_TOKENS}",
        "evaluation.num_samples=0",
        "evaluation.num_judged=1",
        "evaluation.neutral_texts=null",
        "evaluation.regression=null",
        assign("run.root", str(folder / "runs")),
        "logger=none",
        f"algorithm.beta={beta}",
        "optim.learning_rate=5e-4",
        "optim.scheduler=linear",
        "trainer.num_epochs=2",
        "trainer.per_device_batch_size=16",
    ]
    own, runs = split(given)
    points: list[Point] = []
    begun = time.perf_counter()
    for job in plan_submission(SUBMIT.compose(own).build(), runs, None).jobs:
        ((_, task),) = job.tasks.items()
        run = RunDirectory(task.run)
        if job.module == SAMPLE:
            try:
                sample([*task.overrides])
            except UserError as error:  # a chain ends where no two answers of a model are worth comparing
                print(error, file=sys.stderr)
                break
            continue
        train([*task.overrides])
        seconds = time.perf_counter() - begun
        num_pairs = run.read_provenance()["data"]["tokenized"]["train"]["num_kept"]
        points.append(experiment.measure(run.model, beta, len(points) + 1, num_pairs, seconds))
        begun = time.perf_counter()
    return points


def print_points(points: list[Point], console: Console) -> None:
    """Prints a line for each model."""
    table = Table(title="Iterative DPO on a rule's pairs of the model's own endings")
    columns = ("beta", "round", "pairs", "reward", "win rate", "KL/token", "KL/ending", "perplexity", "tokens", "s")
    for column in columns:
        table.add_column(column, justify="right")
    for point in points:
        table.add_row(
            "" if point.round == 0 else f"{point.beta:g}",
            str(point.round),
            str(point.pairs),
            f"{point.reward:.2f} ± {1.96 * point.reward_se:.2f}",
            f"{100 * point.win_rate:.0f} %",
            f"{point.kl_per_token:.3f}",
            f"{point.kl_per_ending:.1f}",
            f"{point.neutral_ratio:.2f}",
            f"{point.tokens:.0f}",
            f"{point.seconds:.0f}",
        )
    console.print(table)


def main(argv: list[str]) -> None:
    """Runs the chains, prints, and writes if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of the model stories260K_hf")
    parser.add_argument("--prompts", type=int, default=80, help="stories to end in each round")
    parser.add_argument("--held-out", type=int, default=80, help="stories to end after each round")
    parser.add_argument("--samples", type=int, default=4, help="endings to each in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--write", action="store_true", help="write results/<machine>/frontier.json")
    args = parser.parse_args(argv)
    console = Console(file=sys.stdout, width=110)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, PREFOPT_CACHE=f"{name}/cache"):
        folder = Path(name)
        experiment = Experiment(args.model, folder, args.prompts, args.held_out)
        points = [experiment.measure(experiment.model, 0.0, 0, 0, 0.0)]
        for beta in args.betas:
            with redirect_stdout(io.StringIO()):  # what the stages say: reports without held-out pairs
                points += climb(experiment, folder, beta, args.rounds, args.samples)
            console.print(f"beta {beta:g}: {time.perf_counter() - begun:.0f} s")
    print_points(points, console)
    if args.write:
        content = {
            "threads": torch.get_num_threads(),
            "prompts": args.prompts,
            "held_out": args.held_out,
            "samples": args.samples,
            "seconds": round(time.perf_counter() - begun),
            "points": [{**asdict(point), "beta": point.beta or None} for point in points],
        }
        console.print(f"written: {write_results('frontier', content, packages=PACKAGES, argv=argv)}")


if __name__ == "__main__":
    main(sys.argv[1:])
