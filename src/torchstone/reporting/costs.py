"""The cost axes of a comparison: their names, units and words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """One cost.

    Attributes:
        key: the key in ``CandidateResult.cost`` (``train_seconds`` comes from the runs).
        label: what a chart's axis or a table's column says.
        unit: the unit of the stored value, empty for counts.
        noun: the cost in a sentence: "at 2.1x its NOUN".
        not_cheaper: the end of the sentence "A is below B and NOT_CHEAPER".
        more_is_better: true for throughput alone.
    """

    key: str
    label: str
    unit: str
    noun: str
    not_cheaper: str
    more_is_better: bool = False

    def expense(self, value: float) -> float:
        """The value turned so that less is better."""
        return -value if self.more_is_better else value

    def times_dearer(self, value: float, reference: float) -> float:
        """How many times dearer ``value`` is than ``reference`` (below 1: cheaper); both positive."""
        return reference / value if self.more_is_better else value / reference


AXES = {
    axis.key: axis
    for axis in (
        Axis("latency_ms_1", "Latency, batch 1", "ms", "latency (batch 1)", "not faster"),
        Axis("latency_ms_32", "Latency, batch 32", "ms", "latency (batch 32)", "not faster"),
        Axis("throughput", "Throughput", "samples/s", "throughput", "not faster", more_is_better=True),
        Axis("params", "Parameters", "", "parameters", "not smaller"),
        Axis("macs", "MACs", "", "multiply-accumulates", "needs no fewer multiply-accumulates"),
        Axis("memory_mb", "Peak memory", "MB", "memory", "needs no less memory"),
        Axis("train_memory_mb", "Training memory", "MB", "training memory", "needs no less training memory"),
        Axis("train_seconds", "Training time", "s", "training time", "trains no faster"),
    )
}
