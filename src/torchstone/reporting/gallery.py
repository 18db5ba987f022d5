"""The gallery of systems and their pages, as Markdown made from the cards and the result files they name.

``python -m torchstone.reporting.gallery README.md`` renews the part of a file between the gallery's two markers.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from torchstone import catalog
from torchstone.catalog import Card
from torchstone.errors import CallError

START = "<!-- gallery: made by python -m torchstone.reporting.gallery README.md -->"
END = "<!-- end of gallery -->"
HOLDS = {"yes": "holds", "no": "does not hold", "partly": "holds in part"}


def gallery(link: str = "src/torchstone/cards/{key}.toml") -> str:
    """One table row per system: kind, proof, parity, claim.

    Args:
        link: where a system's name leads, with ``{key}`` for its key.
    """
    lines = ["| system | kind | proof | parity | claim |", "|---|---|---|---|---|"]
    for card in catalog.cards().values():
        claim = f"{HOLDS[card.claim.holds]}: {card.claim.text}" if card.claim else "-"
        lines.append(
            f"| [{card.title}]({link.format(key=card.key)}) ({card.venue}) | {card.kind}, {card.domain} "
            f"| {catalog.PROOF_MEANING[card.proof]} | {parity_line(card)} | {claim} |"
        )
    return "\n".join(lines)


def parity_line(card: Card) -> str:
    """What the recorded cases showed: their number and the worst error as a share of what is allowed."""
    if "parity" not in card.results:
        return "-"
    parity = catalog.result(card.results["parity"])["results"]
    return f"{parity['cases']} cases, worst error {parity['worst_ratio']:.1%} of the bound"


def system_page(key: str) -> str:
    """The page of one system: its facts, its story (the module's docstring), evidence and differences."""
    card = catalog.card(key)
    lines = [f"# {card.title}", "", card.summary, ""]
    lines += [f"- Paper: [arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv}), {card.venue}"]
    if card.official:
        licence = card.official.code_licence
        lines += [
            f"- Authors' code: [{card.official.repository}](https://github.com/{card.official.repository}) at "
            f"`{card.official.commit[:12]}`, {licence or 'no licence given'}"
        ]
    lines += [f"- Proof: {catalog.PROOF_MEANING[card.proof]}", f"- Parity: {parity_line(card)}"]
    lines += [f"- GPU: {card.gpu}", "", "## The idea", "", _docstring(card), ""]
    lines += ["## Variants", "", "| name | from the paper | weights |", "|---|---|---|"]
    for variant in card.variants:
        weights = f"[released]({variant.weights})" if variant.weights else variant.where or "-"
        lines.append(f"| `{variant.name}` | {'yes' if variant.paper else 'no, ours'} | {weights} |")
    if card.parts:
        lines += ["", "## Parts", "", *(f"- {part}" for part in card.parts)]
    if card.claim:
        lines += ["", "## The claim, checked", "", f"{card.claim.text} **It {HOLDS[card.claim.holds]}.**", ""]
        if card.claim.figure:
            lines += [f"![{card.claim.text}](../images/{card.claim.figure})", ""]
        lines += [f"Measured by `{card.claim.command}`:", "", *_result(card.claim.result)]
    for name, file in card.results.items():
        lines += ["", f"## Measured: {name}", "", *_result(file)]
    if card.deviations:
        lines += ["", "## Where paper, official code and ours differ", ""]
        lines += [f"- {item.what}" for item in card.deviations]
    return "\n".join(lines) + "\n"


def _docstring(card: Card) -> str:
    """The module's docstring, read without importing the module."""
    specification = importlib.util.find_spec(card.module)
    if specification is None or specification.origin is None:
        raise CallError(f"{card.key}: there is no module {card.module}")
    return as_markdown(ast.get_docstring(ast.parse(Path(specification.origin).read_text())) or "")


def as_markdown(docstring: str) -> str:
    """A docstring's references (``:mod:`NAME``` or ``:mod:`TEXT <NAME>```) as code, its example as a block of code."""
    text = re.sub(r":\w+:`~?([^`<]+?)(?:\s+<[^`>]+>)?`", r"`\1`", docstring)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    return re.sub(r"^Example:\n(?! *\n)", "Example:\n\n", text, flags=re.MULTILINE)


def _result(name: str) -> list[str]:
    """A result file as a table, with where and how it was measured."""
    content = catalog.result(name)
    rows = content["results"]
    if all(_is_beside_the_paper(row) for row in rows.values()):
        lines = _beside_the_paper(rows)
    else:
        lines = ["| | |", "|---|---|", *(f"| {path} | {value} |" for path, value in _flatten(rows))]
    versions = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
    return [*lines, "", f"{_where(content)}; {versions}; seeds {content['seeds']}"]


def _where(content: dict[str, Any]) -> str:
    """By which command, when and on what something was measured."""
    hardware = content["hardware"]
    device = hardware.get("gpu") or f"{hardware['processor']}, {hardware['threads']} threads"
    return f"`{content['command']}`, {content['date']}, {device}"


def _is_beside_the_paper(row: object) -> bool:
    """Whether a row is ``{"paper": SCORE or None, "ours": SCORE, ...}`` with a score ``{"mean": ..., "std": ...}``,
    the latter where it is known."""
    if not isinstance(row, dict) or not {"paper", "ours"} <= row.keys():
        return False
    return all(
        row[whose] is None or (isinstance(row[whose], dict) and "mean" in row[whose]) for whose in ("paper", "ours")
    )


def _beside_the_paper(rows: dict[str, Any]) -> list[str]:
    """A table of scores, the paper's and ours, and where each row was measured if rows were measured apart."""
    lines = ["| | paper | ours | difference | within the paper's spread |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        label = f"{name}, {row['network']}" if "network" in row else name
        paper, ours = row["paper"], row["ours"]
        difference = "-" if paper is None else f"{ours['mean'] - paper['mean']:+.{_digits(paper)}f}"
        within = "-"
        if paper is not None and "std" in paper:
            within = "yes" if abs(ours["mean"] - paper["mean"]) <= paper["std"] else "no"
        lines.append(f"| {label} | {_mean_and_spread(paper)} | {_mean_and_spread(ours)} | {difference} | {within} |")
    apart = [f"- {name}: {_where(row['measured'])}" for name, row in rows.items() if "measured" in row]
    return [*lines, "", *apart] if apart else lines


def _digits(score: dict[str, Any]) -> int:
    """Two digits after the point suit per cent; errors below one get four."""
    return 2 if abs(score["mean"]) >= 1 else 4


def _mean_and_spread(score: dict[str, Any] | None) -> str:
    """The mean, the spread where there is one, and in brackets what else a score says: ``84.40 ± 0.50 (20 seeds)``."""
    if score is None:
        return "-"
    digits = _digits(score)
    spread = f" ± {score['std']:.{digits}f}" if "std" in score else ""
    counts = ", ".join(f"{value} {name}" for name, value in score.items() if name not in ("mean", "std"))
    return f"{score['mean']:.{digits}f}{spread}" + (f" ({counts})" if counts else "")


def _flatten(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Rows of a result's names and values; a median with its spread is one row."""
    if isinstance(value, dict) and value.keys() == {"median", "low", "high"}:
        return [(path, f"{value['median']:.4g} ({value['low']:.4g} to {value['high']:.4g})")]
    if isinstance(value, bool):
        return [(path, "yes" if value else "no")]
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _flatten(item, f"{path} / {key}" if path else str(key))]
    if isinstance(value, float):
        return [(path, f"{value:.4g}")]
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return [(path, ", ".join(f"{item:.4g}" for item in value))]
    if isinstance(value, list):
        return [row for index, item in enumerate(value) for row in _flatten(item, f"{path} / {index + 1}")]
    return [(path, str(value))]


def renew(path: Path) -> bool:
    """Renew the gallery in a Markdown file; says whether it changed."""
    text = path.read_text()
    if START not in text or END not in text:
        raise CallError(f"{path} has no gallery markers")
    before, rest = text.split(START, 1)
    after = rest.split(END, 1)[1]
    new = f"{before}{START}\n{gallery()}\n{END}{after}"
    path.write_text(new)
    return new != text


if __name__ == "__main__":
    print("renewed" if renew(Path(sys.argv[1])) else "up to date")
