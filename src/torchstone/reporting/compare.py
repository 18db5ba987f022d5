"""``torchstone compare``: which of these candidates is best on these data, and at what cost.

    compare("digits", ["inceptionnext_mini32", "timm:resnet18"], out="report", seeds=3)

One protocol for all: data, splits, augmentation, batch size, AdamW with a warmed-up cosine schedule. Each candidate
gets the same number of learning-rate trials with seed 0, judged by the validation score of the last epoch, then one run
per seed at the chosen rate; the run of seed 0 is the trial's. Test data are read once per run, after that choice.

A run's folder is named after its identity, so whatever was trained there before is found again: the same command in the
same folder goes on where it stopped, and one with more candidates, seeds or trials trains what is new.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import math
import re
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from torchstone import __version__, environment
from torchstone.errors import CallError, WorkError, WriteFailed
from torchstone.files import read_json, write_json, write_text
from torchstone.instruments.description import ModelDescription
from torchstone.reporting import words
from torchstone.reporting.candidates import Candidate, parse_candidates
from torchstone.reporting.limits import Limit, parse_limits
from torchstone.reporting.measuring import Measurement, failure_reason, measure
from torchstone.reporting.methods import describe, method_spec, pretraining_recipe
from torchstone.reporting.ranking import judge
from torchstone.reporting.results import CURVES, CandidateResult, Comparison, SeedRun, Trial
from torchstone.seeding import seed_everything_at
from torchstone.training.devices import resolve_device
from torchstone.training.fit import Evaluation, FitProgress, RunResult, evaluate, fit, identity
from torchstone.training.recipe import DataSpec, ModelSpec, Recipe, TrainSpec
from torchstone.training.runs import locked_folder
from torchstone.training.tasks import Task, get_task, task_of
from torchstone.training.transforming import TransformedDescription, transform_for
from torchstone.transforms.contract import Plan

PRETRAINED_FACTOR = 0.1
"""Weights that were trained already move by smaller steps."""
TRIAL_RATIO = 10**0.5
"""Ratio of two neighbouring learning rates."""
LEAST_EPOCHS, LEAST_STEPS = 10, 300
"""Without ``epochs``: as many as give both."""


@dataclass(frozen=True)
class Progress:
    """Where a comparison stands.

    Attributes:
        done: share of the training that is behind it, 0 to 1.
        doing: what it is working on.
        run: the state of the run at work; None between runs.
        news: what has just come out, in a sentence; empty most of the time.
    """

    done: float
    doing: str
    run: FitProgress | None = None
    news: str = ""


def compare(
    data: str,
    models: Sequence[str],
    *,
    out: str | Path,
    tune: int = 1,
    epochs: int | None = None,
    pretrain_epochs: int | None = None,
    seeds: int = 3,
    start: str = "scratch",
    limits: Mapping[str, str | float] | None = None,
    device: str = "auto",
    batch_size: int = 128,
    size: int | None = None,
    workers: int = 0,
    augment: str = "auto",
    split_seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    limit: int | None = None,
    split: str = "auto",
    task: str = "auto",
    progress: Callable[[Progress], None] | None = None,
) -> Comparison:
    """Compare candidates on a data set and write ``results.json``, ``results.csv`` and ``report.html``.

    Args:
        data: a built-in set's name or a path.
        models: candidates, written as :mod:`torchstone.reporting.candidates` says.
        out: the folder of the comparison; what an interrupted or a smaller comparison left there is used.
        tune: learning-rate trials of each candidate, see :func:`learning_rates`.
        epochs: passes over the training data in every run; by default as many as give 10 epochs and 300 steps.
        pretrain_epochs: passes over the training data that a method gets before them, see
            :mod:`torchstone.reporting.methods`; by default as many as ``epochs``.
        seeds: runs of each candidate.
        start: what candidates without ``@weights`` start from: ``scratch`` or ``pretrained``.
        limits: the most that a candidate may cost, see :func:`torchstone.reporting.limits.parse_limits`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; costs are measured there as well.
        batch_size: samples per training step.
        size: side of the images in pixels; by default what suits the data.
        workers: loader processes; changes no result.
        augment, split_seed, val_fraction, test_fraction, limit: see :func:`torchstone.data.open_images`.
        split: of a graph's nodes, see :func:`torchstone.data.graphs.open_graph`.
        task: what the data are for; ``auto`` takes a graph's file or name for node classification.
        progress: called as the work goes on.

    Returns:
        The comparison, as it was written.

    Raises:
        CallError: something that cannot work as given; nothing has been trained.
        WriteFailed: the folder cannot be written, or the disk is full; the same call goes on from what was finished.
    """
    options = {name: value for name, value in locals().items() if name not in ("data", "models", "out", "progress")}
    for name, value in (("tune", tune), ("seeds", seeds), ("pretrain_epochs", pretrain_epochs)):
        if value is not None and value < 1:
            raise CallError(f"{name} must be at least 1, got {value}")
    candidates, notes = parse_candidates(models, start)
    if pretrain_epochs is not None and not any(candidate.pretrains for candidate in candidates):
        raise CallError("pretrain_epochs is for candidates with a method that pre-trains (method+model); there is none")
    budget = parse_limits(limits or {})
    where = str(resolve_device(device))
    kind = task_of(str(data)) if task == "auto" else get_task(task)
    protocol = kind.comparison_protocol(LEAST_EPOCHS if epochs is None else epochs, batch_size)
    data_spec = DataSpec(
        source=str(data),
        size=size,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        split_seed=split_seed,
        workers=workers,
        augment=augment,
        limit=limit,
        split=split,
    )
    folder = Path(out)
    tell = progress or (lambda state: None)
    with locked_folder(folder):
        _check_folder(folder)
        tell(Progress(0.0, f"opening {data}"))
        opened = kind.open_data(data_spec, protocol, 0)
        if epochs is None:
            protocol = kind.comparison_protocol(default_epochs(len(opened.train_dataloader())), batch_size)
        options["epochs"] = protocol.epochs
        plan = _Plan(
            kind,
            opened,
            data_spec,
            protocol,
            protocol.epochs if pretrain_epochs is None else pretrain_epochs,
            tune,
            seeds,
            budget,
            where,
            folder,
            options,
        )
        return _Work(plan, candidates, tell).carry_out(notes)


def default_epochs(steps_per_epoch: int) -> int:
    """As many epochs as give at least 10 of them and 300 steps."""
    return max(LEAST_EPOCHS, math.ceil(LEAST_STEPS / steps_per_epoch))


def learning_rates(candidate: Candidate, trials: int, batch_size: int, peer_lr: float = 2e-3) -> list[float]:
    """The rates that a candidate is tried with, its usual one first.

    The grid is ``lr * 10**(k / 2)`` for k = 0, -1, 1, -2, 2, ..., so that more trials only add to it. ``lr`` is the
    card's value (``peer_lr`` for other libraries' models) times ``sqrt(batch_size / 128)``, and a tenth of that for
    pretrained weights.
    """
    usual = candidate.card.lr if candidate.card and candidate.card.lr else peer_lr
    usual *= math.sqrt(batch_size / 128) * (PRETRAINED_FACTOR if candidate.weights else 1.0)
    steps = [(index + 1) // 2 * (-1 if index % 2 else 1) for index in range(trials)]
    return [float(f"{usual * TRIAL_RATIO**step:.3g}") for step in steps]


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than a comparison."""
    entries = {entry.name for entry in folder.iterdir()} - {".lock"}
    if entries and not entries & {"runs", "costs.json", "results.json"}:
        raise CallError(f"{folder} is not empty and holds no comparison ({min(entries)}, ...); name another folder")


# ----------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class _Plan:
    """What is the same for all candidates, and where things go."""

    task: Task
    data: Any
    data_spec: DataSpec
    protocol: TrainSpec
    pretrain_epochs: int
    tune: int
    seeds: int
    limits: list[Limit]
    device: str
    folder: Path
    options: dict[str, Any]

    def recipe(self, candidate: Candidate, lr: float, seed: int, pretrained: Path | None = None) -> Recipe:
        """The recipe of a run; ``pretrained`` is the run of the candidate's method that it starts from."""
        return Recipe(
            model=ModelSpec(
                candidate.model,
                weights=str(pretrained) if pretrained else candidate.weights,
                transforms=candidate.steps,
            ),
            method=method_spec(candidate) if candidate.method and not candidate.pretrains else None,
            data=self.data_spec,
            train=replace(self.protocol, lr=lr),
            task=self.task.name,
            seed=seed,
        )

    def pretraining(self, candidate: Candidate, seed: int) -> Recipe:
        """The recipe of a candidate's method."""
        batch_size = self.protocol.batch_size
        return pretraining_recipe(candidate, self.data_spec, self.task.name, seed, self.pretrain_epochs, batch_size)

    def pretraining_folder(self, candidate: Candidate, recipe: Recipe) -> Path:
        """Shared by all candidates of the same method and model."""
        name = f"pretrain-seed{recipe.seed}-{identity(recipe, self.data.fingerprint)[:8]}"
        return self.folder / "runs" / _file_name("+".join(candidate.name.split("+")[:2])) / name

    def epochs_of(self, candidate: Candidate) -> int:
        """Epochs that all runs of a candidate need."""
        before = self.pretrain_epochs * self.seeds if candidate.pretrains else 0
        return before + self.protocol.epochs * (self.tune + self.seeds - 1)

    def run_folder(self, candidate: Candidate, recipe: Recipe) -> Path:
        """Named for people by candidate, rate and seed, and by its identity, so that it never holds another run."""
        name = f"lr{recipe.train.lr:g}-seed{recipe.seed}-{identity(recipe, self.data.fingerprint)[:8]}"
        return self.candidate_folder(candidate) / name

    def candidate_folder(self, candidate: Candidate) -> Path:
        return self.folder / "runs" / _file_name(candidate.name)

    def command(self, candidates: Sequence[Candidate], out: str) -> str:
        """The command line of this comparison with these candidates; an option with its usual value is left out."""
        models = [candidate.name for candidate in candidates]
        usual = {name: parameter.default for name, parameter in inspect.signature(compare).parameters.items()}
        parts = ["torchstone", "compare", "--data", self.data_spec.source, "--models", *models]
        for name, value in self.options.items():
            if name == "limits":
                parts += [part for limit, most in (value or {}).items() for part in ("--max", f"{limit}={most}")]
            elif value != usual[name] and (name != "pretrain_epochs" or any(one.pretrains for one in candidates)):
                parts += [f"--{name.replace('_', '-')}", str(value)]
        return shlex.join([*parts, "--out", out])

    def describe(self, candidates: Sequence[Candidate]) -> dict[str, Any]:
        """The protocol as the report lists it."""
        methods = {one.method: one for one in candidates if one.method and one.pretrains}
        shown = (
            "epochs batch_size optimizer weight_decay schedule warmup_epochs label_smoothing clip_grad precision select"
        )
        kept = "last epoch" if self.protocol.select == "last" else "epoch of lowest validation loss"
        return {
            **{name: getattr(self.protocol, name) for name in shown.split()},
            "augment": self.data.augment,
            "trials": self.tune,
            "selection": f"validation {self.task.metric} of the {kept} with seed 0; of equal ones the smaller rate",
            "seeds": list(range(self.seeds)),
            "limits": dict(self.options["limits"] or {}),
            **{f"pre-training by {m.name}": describe(self.pretraining(one, 0)) for m, one in methods.items()},
        }


def _file_name(name: str) -> str:
    """A candidate's name as a file name: itself where that is possible, else something readable and a hash."""
    readable = re.sub(r"[^\w.=-]+", "-", name)[:60]
    return readable if readable == name else f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


# ----------------------------------------------------------------------------------------------------------------- work


class _Failed(Exception):
    """A candidate cannot go on; the others can."""


class _Work:
    """Carries a plan out, one candidate after the other."""

    def __init__(self, plan: _Plan, candidates: list[Candidate], tell: Callable[[Progress], None]) -> None:
        self.plan = plan
        self.candidates = candidates
        self.tell = tell
        self.results: list[CandidateResult] = []
        self.per_sample: dict[str, Any] = {}  # candidate -> score of every test sample, (seeds, samples)
        self.pretrained: dict[tuple[str, int], RunResult] = {}
        self.epochs_done = 0
        self.doing = ""

    def carry_out(self, notes: list[str]) -> Comparison:
        for note in notes:
            self.report(news=note)
        plan = self.plan
        descriptions, failures = self.descriptions()
        measured = measure(
            descriptions,
            num_classes=len(plan.data.classes),
            batch_size=plan.task.training_batch(plan.protocol),
            batch_sizes=plan.task.batch_sizes,
            device=plan.device,
            limits=plan.limits,
            file=plan.folder / "costs.json",
            tell=self.begin,
        )
        measured |= failures
        self.report(news=f"costs of {len(descriptions)} candidates measured")
        for index, candidate in enumerate(self.candidates, 1):
            self.results.append(self.result(candidate, measured[candidate.name]))
            self.epochs_done = sum(plan.epochs_of(done) for done in self.candidates[:index])
            comparison = self.comparison()
            comparison.write(plan.folder)
            self.report(news=_news(comparison.candidates[-1], plan.task.metric))
        return comparison

    def descriptions(self) -> tuple[dict[str, ModelDescription], dict[str, Measurement]]:
        """What the cost of each candidate is measured on, and the candidates whose transforms cannot be done."""
        described, failures = {}, {}
        for candidate in self.candidates:
            description = self.plan.task.description(candidate.model, self.plan.data)
            if candidate.transforms:
                try:
                    description = TransformedDescription.of(description, self.transform_plans(candidate))
                except _Failed as failure:
                    failures[candidate.name] = Measurement(failed=str(failure))
                    continue
            described[candidate.name] = description
        return described, failures

    def transform_plans(self, candidate: Candidate) -> list[Plan]:
        """What the transforms of a candidate decide with seed 0, done once and kept."""
        plan = self.plan
        lr = learning_rates(candidate, 1, plan.protocol.batch_size, plan.task.peer_lr)[0]
        recipe = plan.recipe(candidate, lr, seed=0)
        file = plan.candidate_folder(candidate) / f"plans-{identity(recipe, plan.data.fingerprint)[:8]}.json"
        if file.is_file():
            return read_json(file)
        self.begin(f"{candidate.name}, transforms")
        with self.failing(candidate, self.doing), isolate_rng():
            seed_everything_at("weights", 0)
            model = plan.task.build_model(recipe.model, plan.data, recipe.train)
            plans = transform_for(recipe, model, plan.task, plan.data, resolve_device(plan.device)).plans
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, plans)
        return plans

    # --- progress

    def begin(self, doing: str) -> None:
        self.doing = doing
        self.report()

    def report(self, run: FitProgress | None = None, news: str = "") -> None:
        under_way = run.epoch - 1 + run.step / run.steps if run else 0.0
        in_all = sum(self.plan.epochs_of(candidate) for candidate in self.candidates)
        self.tell(Progress((self.epochs_done + under_way) / in_all, self.doing, run, news))

    # --- one candidate

    def result(self, candidate: Candidate, measurement: Measurement) -> CandidateResult:
        """Train a candidate, if it may be trained, and say what came of it."""
        told = CandidateResult(
            name=candidate.name,
            model=candidate.model,
            start=candidate.start,
            status="failed",
            reason=measurement.failed,
            proof=candidate.card.proof if candidate.card else "",
            source=candidate.source,
            method=candidate.method.name if candidate.method and candidate.pretrains else "",
            cost=measurement.cost,
            reproduce=self.plan.command([candidate], f"{self.plan.folder.name}-{_file_name(candidate.name)}"),
        )
        if measurement.failed:
            return told
        if measurement.over_budget:
            return replace(told, status="over budget", reason=measurement.over_budget)
        trials: list[Trial] = []
        try:
            lr, runs = self.runs(candidate, trials)
            tests = [self.test(candidate, run) for run in runs]
        except _Failed as failure:
            return replace(told, reason=str(failure), trials=trials)
        self.per_sample[candidate.name] = torch.stack([test.per_sample for test in tests]).numpy()
        return replace(
            told,
            status="trained",
            lr=lr,
            trials=trials,
            runs=[self.seed_run(candidate, seed, runs[seed], tests[seed]) for seed in range(self.plan.seeds)],
            confusion=_confusion(tests) if self.plan.task.error_view == "confusion" else None,
        )

    def runs(self, candidate: Candidate, trials: list[Trial]) -> tuple[float, list[RunResult]]:
        """Try the learning rates with seed 0, then train the other seeds at the best.

        Args:
            candidate: what is trained.
            trials: what came of each rate is appended here.

        Returns:
            The best rate, and one finished run per seed.
        """
        finished: dict[float, RunResult] = {}
        for lr in learning_rates(candidate, self.plan.tune, self.plan.protocol.batch_size, self.plan.task.peer_lr):
            try:
                finished[lr] = self.train(candidate, lr, seed=0)
                trials.append(Trial(lr, finished[lr].score))
            except _Failed as failure:
                trials.append(Trial(lr, None, str(failure)))
        if not finished:
            raise _Failed(trials[0].error)
        sign = 1 if self.plan.task.maximize else -1
        best = max(finished, key=lambda lr: (sign * finished[lr].score, -lr))
        return best, [finished[best], *(self.train(candidate, best, seed) for seed in range(1, self.plan.seeds))]

    def train(self, candidate: Candidate, lr: float, seed: int) -> RunResult:
        before = self.pretrain(candidate, seed).path if candidate.pretrains else None
        recipe = self.plan.recipe(candidate, lr, seed, before)
        folder = self.plan.run_folder(candidate, recipe)
        return self.fit(candidate, recipe, folder, f"{candidate.name}, learning rate {lr:g}, seed {seed}")

    def pretrain(self, candidate: Candidate, seed: int) -> RunResult:
        """The run of a candidate's method with a seed, trained once."""
        key = candidate.name, seed
        if key not in self.pretrained:
            doing = f"{candidate.name}, pre-training, seed {seed}"
            with self.failing(candidate, doing):
                recipe = self.plan.pretraining(candidate, seed)
                folder = self.plan.pretraining_folder(candidate, recipe)
            self.pretrained[key] = self.fit(candidate, recipe, folder, doing)
        return self.pretrained[key]

    def fit(self, candidate: Candidate, recipe: Recipe, folder: Path, doing: str) -> RunResult:
        self.begin(doing)
        with self.failing(candidate, doing):
            run = fit(recipe, folder, device=self.plan.device, source=self.plan.data.source, progress=self.report)
        self.epochs_done += recipe.train.epochs
        how = words.duration(run.seconds) if run.trained else "found finished"
        reached = words.score(run.score, run.metric)
        if run.metric != self.plan.task.metric:
            reached = f"{run.metric} {reached}"
        self.report(news=f"{doing}: {reached} on validation data, {how}")
        return run

    def test(self, candidate: Candidate, run: RunResult) -> Evaluation:
        self.begin(f"{candidate.name}, test data")
        with self.failing(candidate, self.doing):
            return evaluate(run.path, "test", device=self.plan.device, source=self.plan.data.source)

    @contextmanager
    def failing(self, candidate: Candidate, doing: str) -> Iterator[None]:
        """Turn any error but a disk that cannot be written, which stops everybody, into this candidate's failure."""
        try:
            yield
        except WriteFailed:
            raise
        except Exception as error:
            reason = failure_reason(error)
            if not isinstance(error, CallError | WorkError):
                file = self.plan.candidate_folder(candidate) / "traceback.txt"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, traceback.format_exc())
                reason += f" (traceback: {file.relative_to(self.plan.folder)})"
            raise _Failed(f"{doing}: {reason}") from error

    def seed_run(self, candidate: Candidate, seed: int, run: RunResult, test: Evaluation) -> SeedRun:
        return SeedRun(
            seed=seed,
            score=test.score,
            curves={name: [row[name] for row in run.rows] for name in CURVES if name in run.rows[0]},
            seconds=run.seconds,
            pretrain_seconds=self.pretrained[candidate.name, seed].seconds if candidate.pretrains else 0.0,
            run=run.path.relative_to(self.plan.folder).as_posix(),
        )

    # --- all candidates

    def comparison(self) -> Comparison:
        """What is known so far."""
        plan = self.plan
        told = plan.data.describe()
        sizes = {name: part["size"] for name, part in told["splits"].items()}
        waiting = [candidate.name for candidate in self.candidates[len(self.results) :]]
        return Comparison(
            data={"source": plan.data_spec.source, "sizes": sizes, **told},
            task=plan.task.name,
            metric=plan.task.metric,
            maximize=plan.task.maximize,
            protocol=plan.describe(self.candidates) | ({"not finished": waiting} if waiting else {}),
            candidates=judge(
                self.results,
                self.per_sample,
                metric=plan.task.metric,
                maximize=plan.task.maximize,
                bounds=(0.0, 1.0) if words.is_fraction(plan.task.metric) else None,
            ),
            environment={**environment.describe(), "device": plan.device},
            command=plan.command(self.candidates, str(plan.folder)),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            version=__version__,
        )


def _confusion(tests: list[Evaluation]) -> list[list[int]]:
    """Counts [true class][predicted class] over all runs."""
    classes = len(tests[0].classes)
    pairs = torch.cat([test.targets * classes + test.predictions for test in tests])
    return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).tolist()


def _news(result: CandidateResult, metric: str) -> str:
    """What came of a candidate, in a line; its interval is known only when all have told how much seeds matter."""
    if not result.trained:
        return f"{result.name}: {result.status}: {result.reason}"
    return f"{result.name}: {words.score(result.score, metric)} on test data"
