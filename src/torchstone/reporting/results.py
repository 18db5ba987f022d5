"""What a comparison found, as plain values: the contract between the run that measures and the page that shows.

``results.json`` is :meth:`Comparison.to_dict`; ``results.csv`` has one row per candidate; ``report.html`` is drawn from
nothing but the same values.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torchstone.errors import WriteFailed
from torchstone.files import read_json, write_json, write_text

STARTS = ("scratch", "pretrained")
STATUSES = ("trained", "over budget", "failed")
CURVES = ("epoch", "train_loss", "val_loss", "val_accuracy", "lr")


@dataclass(frozen=True)
class Trial:
    """One learning-rate trial: the validation score with seed 0, or why there is none."""

    lr: float
    score: float | None
    error: str = ""


@dataclass(frozen=True)
class SeedRun:
    """One finished training run.

    Attributes:
        seed: the run's seed.
        score: the test score.
        curves: equally long lists under the keys ``epoch, train_loss, val_loss, val_accuracy, lr`` (any may be absent).
        seconds: wall time of the training.
        pretrain_seconds: wall time of the method's training before it.
        run: the run directory, relative to the comparison's.
    """

    seed: int
    score: float
    curves: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    run: str = ""
    pretrain_seconds: float = 0.0


@dataclass(frozen=True)
class CandidateResult:
    """All that is known about one candidate.

    :func:`torchstone.reporting.ranking.judge` fills in what compares candidates: score, ties, dominance, rank, gap.

    Attributes:
        name: the candidate as the user wrote it (globs expanded).
        model: the model's name.
        start: ``scratch`` or ``pretrained``; the two are never ranked together.
        status: ``trained``, ``over budget`` or ``failed``.
        reason: why it was not trained or failed, in a sentence.
        proof: the card's proof (``official``, ``port``, ``definition``, ``reconstruction``), empty for peers.
        source: ``torchstone``, ``timm`` or ``torchvision``.
        method: the method that trained the network before, empty when none did.
        cost: ``params, macs, latency_ms_1, latency_ms_32, throughput, memory_mb, train_memory_mb``; None or absent
            where not measured.
        lr: the learning rate that the trials chose.
        trials: the learning-rate trials.
        runs: one entry per seed.
        score, low, high: mean test score over the seeds, and its interval.
        confusion: counts [true class][predicted class], summed over the seeds.
        tied_with: candidates of the same start whose intervals overlap this one's.
        dominated: cost axis -> why another candidate is the better choice there; absent axes are not dominated.
        reproduce: a command that trains this candidate again.
        rank: 1 + the number of candidates of the same start that are really better.
        gap, gap_low, gap_high: how far behind the leader of the same start, with the paired interval; None for the
            leader.
    """

    name: str
    model: str
    start: str
    status: str
    reason: str = ""
    proof: str = ""
    source: str = "torchstone"
    cost: dict[str, float | None] = field(default_factory=dict)
    lr: float | None = None
    trials: list[Trial] = field(default_factory=list)
    runs: list[SeedRun] = field(default_factory=list)
    score: float | None = None
    low: float | None = None
    high: float | None = None
    confusion: list[list[int]] | None = None
    tied_with: list[str] = field(default_factory=list)
    dominated: dict[str, str] = field(default_factory=dict)
    reproduce: str = ""
    rank: int | None = None
    gap: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None
    method: str = ""

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"{self.name}: start is {self.start!r}, valid: {', '.join(STARTS)}")
        if self.status not in STATUSES:
            raise ValueError(f"{self.name}: status is {self.status!r}, valid: {', '.join(STATUSES)}")

    @property
    def trained(self) -> bool:
        return self.status == "trained"

    @property
    def train_seconds(self) -> float | None:
        """Mean training time of a run, what a method trained before it included."""
        return sum(run.seconds + run.pretrain_seconds for run in self.runs) / len(self.runs) if self.runs else None

    @property
    def pretrain_seconds(self) -> float | None:
        """The method's part of :attr:`train_seconds`; None without a method."""
        return sum(run.pretrain_seconds for run in self.runs) / len(self.runs) if self.runs and self.method else None

    def cost_on(self, axis: str) -> float | None:
        """The cost on one of :data:`torchstone.reporting.costs.AXES`, None where it was not measured."""
        value = self.train_seconds if axis == "train_seconds" else self.cost.get(axis)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Comparison:
    """A whole comparison.

    Attributes:
        data: ``ImageData.describe()`` plus ``classes`` (their names): whatever it holds is listed; ``name``,
            ``classes`` and ``sizes`` are also used in the text.
        task: the task's name.
        metric: the score's name; a name with ``accuracy`` in it is a fraction and shown in per cent.
        maximize: whether a larger score is better.
        protocol: what was the same for all: epochs, batch size, seeds, augmentation, ...
        candidates: in the order that the user gave.
        environment: :func:`torchstone.environment.describe`, plus ``device``.
        command: the command line of the comparison.
        created: date and time, ISO 8601.
        version: the package's version.
    """

    data: dict[str, Any]
    task: str
    metric: str
    maximize: bool
    protocol: dict[str, Any]
    candidates: list[CandidateResult]
    environment: dict[str, Any]
    command: str
    created: str
    version: str

    def ranked(self, start: str) -> list[CandidateResult]:
        """The trained candidates of one start, best first."""
        group = [c for c in self.candidates if c.start == start and c.trained and c.score is not None]
        sign = -1.0 if self.maximize else 1.0
        return sorted(group, key=lambda c: sign * (c.score or 0.0))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; non-finite numbers become None."""
        return _finite(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        candidates = [
            CandidateResult(
                **{
                    **candidate,
                    "trials": [Trial(**trial) for trial in candidate.get("trials", ())],
                    "runs": [SeedRun(**run) for run in candidate.get("runs", ())],
                }
            )
            for candidate in values["candidates"]
        ]
        return cls(**{**values, "candidates": candidates})

    def write(self, out: str | Path) -> Path:
        """Write ``results.json``, ``results.csv`` and ``report.html``, each whole or not at all.

        Returns:
            The path of the report.

        Raises:
            WriteFailed: the folder cannot be written or the disk is full; the files that stood there remain.
        """
        from torchstone.reporting.report import render

        out = Path(out)
        page = render(self)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteFailed(f"cannot write into {out}: {error.strerror or error}") from error
        write_json(out / "results.json", self.to_dict())
        write_text(out / "results.csv", to_csv(self))
        write_text(out / "report.html", page)
        return out / "report.html"


def load_comparison(out: str | Path) -> Comparison:
    """Read back what :meth:`Comparison.write` wrote, from its folder."""
    return Comparison.from_dict(read_json(Path(out) / "results.json"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def to_csv(comparison: Comparison) -> str:
    """One row per candidate: what it is, score, interval, costs, and the score of every seed."""
    seeds = sorted({run.seed for candidate in comparison.candidates for run in candidate.runs})
    costs = sorted({axis for candidate in comparison.candidates for axis in candidate.cost})
    plain = [
        f.name
        for f in fields(CandidateResult)
        if f.name not in {"cost", "trials", "runs", "confusion", "tied_with", "dominated", "reproduce"}
    ]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        [
            *plain,
            *costs,
            *("train_seconds", "pretrain_seconds"),
            *(f"seed_{seed}" for seed in seeds),
            *("tied_with", "dominated_on", "reproduce"),
        ]
    )
    for candidate in comparison.candidates:
        by_seed = {run.seed: run.score for run in candidate.runs}
        writer.writerow(
            [
                *(getattr(candidate, name) for name in plain),
                *(candidate.cost.get(axis) for axis in costs),
                candidate.train_seconds,
                candidate.pretrain_seconds,
                *(by_seed.get(seed) for seed in seeds),
                " ".join(candidate.tied_with),
                " ".join(candidate.dominated),
                candidate.reproduce,
            ]
        )
    return file.getvalue()
