"""``torchstone verify``: show that a system is what its card says it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchstone import catalog
from torchstone.environment import write_result
from torchstone.errors import CallError
from torchstone.verification.cases import RecordedCase, case_files, read_case
from torchstone.verification.layouts import LayoutCheck, check_layouts, load_checkpoint, read_layouts
from torchstone.verification.parity import Check, bound_of, check_recorded, load_adapter, parity_folder


@dataclass(frozen=True)
class VerifyReport:
    """What was compared, and how it came out.

    Attributes:
        system: key of the system.
        proof: what the recorded numbers come from, as on the card.
        cases: names of the recorded cases that were run.
        checks: one per output of each case.
        layouts: one per variant whose released layout is known here.
        checkpoint: the released file that was loaded and the variant it belongs to.
        deferred: recorded cases that the card leaves to a later system, with the reason.
    """

    system: str
    proof: str
    cases: tuple[str, ...]
    checks: tuple[Check, ...]
    layouts: tuple[LayoutCheck, ...] = ()
    checkpoint: dict[str, str] | None = None
    deferred: tuple[catalog.Deferred, ...] = ()

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks) and all(layout.ok for layout in self.layouts)

    @property
    def worst_ratio(self) -> float | None:
        """The largest error of a float output as a share of its tolerance."""
        return max((check.ratio for check in self.checks if check.ratio is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "system": self.system,
            "proof": self.proof,
            "ok": self.ok,
            "cases": len(self.cases),
            "outputs": len(self.checks),
            "failed": sum(not check.ok for check in self.checks),
            "worst_ratio": self.worst_ratio,
            "layouts": [asdict(layout) for layout in self.layouts],
            "checkpoint": self.checkpoint,
            "deferred": [asdict(entry) for entry in self.deferred],
            "checks": [{**asdict(check), "ratio": check.ratio, "ok": check.ok} for check in self.checks],
        }

    def write(self, path: str | Path, command: str) -> None:
        """Write the JSON that the card's ``results.parity`` points to."""
        write_result(path, command=command, seeds=[0], results=self.to_dict())

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.table import Table
        from rich.text import Text

        def verdict(ok: bool, problem: str) -> Text:
            return Text("ok", "green") if ok else Text(problem, "bold red")

        table = Table(title=f"{self.system}: {catalog.PROOF_MEANING[self.proof]}", title_justify="left")
        for heading, justify in (("case", "left"), ("output", "left"), ("max error", "right"), ("allowed", "right")):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]
        table.add_column("")
        for check in self.checks:
            error = "" if check.error is None else f"{check.error:.2g}"
            allowed = "" if check.tolerance is None else f"{check.tolerance:.2g}"
            table.add_row(Text(check.case), Text(check.output), error, allowed, verdict(check.ok, check.problem))
        if self.checks:
            yield table
        if self.layouts:
            table = Table(title="released layouts, loaded strictly", title_justify="left")
            table.add_column("variant")
            table.add_column("parameters", justify="right")
            table.add_column("")
            for layout in self.layouts:
                table.add_row(Text(layout.variant), f"{layout.params:,}", verdict(layout.ok, layout.problem))
            yield table
        if self.checkpoint:
            yield Text(f"{self.checkpoint['file']} loads strictly as {self.checkpoint['variant']}", "green")
        for entry in self.deferred:
            yield Text(f"not compared: {entry.case} ({entry.reason})", "yellow")
        yield Text(self.summary(), "green" if self.ok else "bold red")

    def summary(self) -> str:
        """One line: what was compared and the verdict."""
        if not self.checks:
            return f"{self.system}: no recorded case to compare with ({catalog.PROOF_MEANING[self.proof]})"
        failed = sum(not check.ok for check in self.checks)
        worst = "" if self.worst_ratio is None else f", worst error {self.worst_ratio:.1%} of what is allowed"
        verdict = f"{failed} failed" if failed else f"all agree{worst}"
        return f"{self.system}: {_count(len(self.cases), 'case')}, {_count(len(self.checks), 'output')}: {verdict}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def verify(
    key: str,
    cases_dir: str | Path | None = None,
    checkpoint: str | Path | None = None,
    *,
    variant: str | None = None,
) -> VerifyReport:
    """Compare a system with recorded answers of its authors' code, and load a file that they released.

    Args:
        key: the system.
        cases_dir: a folder of recorded cases, or one with a folder per system; None for the cases that come with the
            project. ``keys/<key>.json`` beside it is checked too when it is there.
        checkpoint: a file that the authors released; it must fit one variant strictly.
        variant: the variant the file belongs to; None to find it.

    Raises:
        UnknownName: no such system or variant.
        CallError: no cases in the folder, a damaged file, or a checkpoint that fits no variant.
    """
    card = catalog.card(key)
    folder = _case_folder(card, cases_dir)
    deferred = {entry.case for entry in card.deferred}
    recorded = [read_case(path) for path in case_files(folder) if path.stem not in deferred] if folder else []
    foreign = [case.case for case in recorded if case.case.system != key]
    if foreign:
        raise CallError(f"{folder} holds cases of {foreign[0].system!r}, not of {key!r}")
    checks = [check for case in recorded for check in _checks(case, card)]
    keys = _key_list(key, folder)
    loaded = None
    if checkpoint is not None:
        name, _ = load_checkpoint(key, checkpoint, variant)
        loaded = {"file": Path(checkpoint).name, "variant": name}
    return VerifyReport(
        system=key,
        proof=card.proof,
        cases=tuple(case.case.name for case in recorded),
        checks=tuple(checks),
        layouts=tuple(check_layouts(key, read_layouts(keys))) if keys else (),
        checkpoint=loaded,
        deferred=card.deferred,
    )


def _checks(recorded: RecordedCase, card: catalog.Card) -> list[Check]:
    """The checks of one case; a case that cannot be run fails, and the others go on."""
    bound = bound_of(recorded.case, card)
    try:
        return check_recorded(recorded, load_adapter(card.key), bound)
    except Exception as error:
        return [Check(recorded.case.name, "(run)", problem=f"{type(error).__name__}: {error}")]


def _case_folder(card: catalog.Card, cases_dir: str | Path | None) -> Path | None:
    """The folder of the system's cases; None for a system that nothing was recorded of."""
    places = [parity_folder() / "cases" / card.key]
    if cases_dir is not None:
        if not Path(cases_dir).is_dir():
            raise CallError(f"there is no folder {cases_dir}")
        places = [Path(cases_dir) / card.key, Path(cases_dir)]
    for place in places:
        if place.is_dir() and any(path.with_suffix(".safetensors").is_file() for path in case_files(place)):
            return place
    if cases_dir is None and card.proof == "reconstruction":
        return None
    raise CallError(f"no recorded cases of {card.key} in {places[-1]}")


def _key_list(key: str, folder: Path | None) -> Path | None:
    """``keys/<key>.json`` beside a folder of recorded cases, or beside the folder above it."""
    places = [above / "keys" / f"{key}.json" for above in (folder.parent, folder.parent.parent)] if folder else []
    return next((place for place in places if place.is_file()), None)
