"""STABLE's table and its claim: test accuracy on attacked graphs, without a defence and with two.

On each graph a plain GCN, GCN-Jaccard and STABLE are trained on the split that the attack was made for; all have 16
hidden channels, Adam at 0.01, a weight decay of 5e-4 and 200 epochs, and keep the epoch of lowest validation loss.
STABLE has its authors' settings for the graph and rate, and ``--pretrain`` epochs of contrastive training before, of
which the best counts. The shares of added and of clean edges that each prune dropped are told where the clean graph is
published. The claim holds when, on Cora at the largest rate, STABLE is above GCN-Jaccard and that above GCN by more
than the spreads of both together, and STABLE is no more than a point below GCN on the clean graph.

    python benchmarks/table_stable_gnn.py --data FOLDER

FOLDER holds ``robust_citation`` and, for the clean graphs, ``cora_cpf`` and ``citeseer_cpf``. Runs are kept in
``--runs``: the command goes on where it stopped. Without ``--data`` the figure is drawn anew from the result file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import Point, draw

from torchstone.data.graphs import open_graph
from torchstone.environment import write_result
from torchstone.files import read_json
from torchstone.models.graph.stable_gcn import SETTINGS, prune_jaccard
from torchstone.training import load_recipe
from torchstone.training.fit import evaluate, fit
from torchstone.training.runs import load_run

RESULTS = Path(__file__).parent / "results"
RESULT, TABLE = RESULTS / "claims" / "stable_gnn.json", RESULTS / "tables" / "stable_gnn.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "stable_gnn_rate.svg"
NAMES = {
    "gcn": "GCN",
    "gcn_jaccard": "GCN-Jaccard",
    "stable": "STABLE",
    "stable_mild": "STABLE as set for the clean graph",
}
LEFT_OUT = {  # nothing can be pruned by PolBlogs' features; the last is asked for where the authors' settings fail
    "gcn_jaccard": ("polblogs",),
    "stable_mild": ("cora", "citeseer"),
}
CASES = (  # graph and share of edges that Metattack changed, what matters most first
    ("cora", 0.2),
    ("cora", 0.0),
    ("cora", 0.1),
    ("citeseer", 0.2),
    ("polblogs", 0.2),
    ("cora", 0.05),
    ("cora", 0.15),
    ("citeseer", 0.0),
)
PAPER = {
    # Per cent. GCN and GCN-Jaccard on Cora: the table of the paper's introduction. STABLE, and GCN elsewhere: the main
    # table, rounded, as others list it; not checked against the paper.
    ("cora", 0.0): {"gcn": 83.56, "gcn_jaccard": 81.79, "stable": 85.6},
    ("cora", 0.05): {"gcn": 76.36, "gcn_jaccard": 80.23, "stable": 81.4},
    ("cora", 0.1): {"gcn": 71.62, "gcn_jaccard": 74.65, "stable": 80.5},
    ("cora", 0.15): {"stable": 78.6},
    ("cora", 0.2): {"gcn": 60.31, "gcn_jaccard": 73.11, "stable": 77.8},
    ("citeseer", 0.0): {"stable": 75.8},
    ("citeseer", 0.2): {"gcn": 61.9, "stable": 72.8},
    ("polblogs", 0.2): {"gcn": 51.0, "stable": 88.5},
}
COST = 1.0  # points that the defence may lose on the clean graph


def source(data: Path, graph: str, rate: float) -> str:
    attack = f"meta-{rate:g}" if rate else "clean"
    return f"robust:{data / 'robust_citation' / f'{graph}-{attack}'}"


def train(name: str, changes: dict[str, Any], path: Path) -> Path:
    """One run of a recipe with some keys changed."""
    return fit(load_recipe(name, [f"{key}={value}" for key, value in changes.items()]), path, device="cpu").path


def run_of(network: str, graph: str, rate: float, seed: int, given: argparse.Namespace) -> Path:
    """The finished run of one network on one graph."""
    place = given.runs / f"{graph}-{rate:g}" / str(seed)
    common = {"data.source": source(given.data, graph, rate), "seed": seed}
    if network in ("stable", "stable_mild"):
        settings = SETTINGS[graph][rate if network == "stable" else 0.0]
        common |= {"model.name": "stable_gcn", "model.args": settings}
        before = train(
            "stable_gnn_cora",
            {**common, "train.epochs": given.pretrain, "train.patience": "null"},
            place / f"encoder{network.removeprefix('stable')}",
        )
        common |= {"model.weights": before}
    else:
        name = "gcn_jaccard" if network == "gcn_jaccard" else "pyg:gcn"
        common |= {"model.name": name, "model.args": "{hidden_channels: 16}"}
    return train("stable_gcn_cora", common, place / network)


def removed(run: Path, data: Path, graph: str, rate: float) -> dict[str, float]:
    """The shares, in per cent, of added and of clean edges that the two prunes of STABLE's network drop."""
    given, clean = (open_graph(source(data, graph, r), normalize=False).graph for r in (rate, 0.0))
    nodes = given.num_nodes
    added = ~torch.isin(
        given.edge_index[0] * nodes + given.edge_index[1], clean.edge_index[0] * nodes + clean.edge_index[1]
    )
    network: Any = load_run(run)[0]
    embedding = network.embed(given.x, given.edge_index)
    stays = {
        "by features": prune_jaccard(given.x, given.edge_index, network.jaccard),
        "by representations": network.kept(embedding, given.edge_index),
    }
    return {
        f"{kind} edges dropped {how}": round(100 * float((~kept[of]).float().mean()), 2)
        for how, kept in stays.items()
        for kind, of in (("added", added), ("clean", ~added))
        if of.any()
    }


def on(graph: str, rate: float, given: argparse.Namespace) -> dict[str, Any]:
    """All networks on one graph."""
    row: dict[str, Any] = {"graph": graph, "rate": rate, "accuracy": {}, "paper": PAPER[graph, rate]}
    runs: dict[str, list[Path]] = {}
    for network in NAMES:
        if graph in LEFT_OUT.get(network, ()):
            continue
        runs[network] = [run_of(network, graph, rate, seed, given) for seed in range(given.seeds)]
        scores = [round(100 * evaluate(run, "test", device="cpu").score, 2) for run in runs[network]]
        row["accuracy"][network] = {
            "mean": round(float(np.mean(scores)), 2),
            "std": round(float(np.std(scores, ddof=1)), 2),
            "scores": scores,
        }
        print(f"{graph}, rate {rate:g}, {network}: {scores}", flush=True)
    if graph != "polblogs":  # whose clean graph is not published
        row["pruned"] = removed(runs["stable"][0], given.data, graph, rate)
    return row


def verdict(rows: list[dict[str, Any]]) -> str:
    """Whether the claim holds on Cora."""
    cora = {row["rate"]: row["accuracy"] for row in rows if row["graph"] == "cora"}

    def above(one: dict[str, float], other: dict[str, float]) -> bool:
        return one["mean"] - other["mean"] > one["std"] + other["std"]

    attacked = cora[0.2]
    parts = [above(attacked["stable"], attacked["gcn_jaccard"]), above(attacked["gcn_jaccard"], attacked["gcn"])]
    if 0.0 in cora:
        parts.append(cora[0.0]["stable"]["mean"] >= cora[0.0]["gcn"]["mean"] - COST)
    return "yes" if len(parts) == 3 and all(parts) else "partly" if any(parts) else "no"


def beside_the_paper(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Every score as a row of its own."""
    return {
        f"{row['graph']}, {100 * row['rate']:g} % of the edges changed, {NAMES[network]}": {
            "paper": {"mean": row["paper"][network]} if network in row["paper"] else None,
            "ours": {"mean": ours["mean"], "std": ours["std"], "seeds": len(ours["scores"])},
        }
        for row in sorted(rows, key=lambda r: (r["graph"], r["rate"]))
        for network, ours in row["accuracy"].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="the folder of robust_citation; without it only the figure is drawn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain", type=int, default=150)
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many graphs")
    parser.add_argument("--runs", type=Path, default=Path("runs/table_stable_gnn"))
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be at least 2: the table has a spread")
    if given.data is not None:
        torch.set_num_threads(1)
        rows: list[dict[str, Any]] = []
        for count, (graph, rate) in enumerate(CASES[: given.cases], start=1):
            rows.append(on(graph, rate, given))
            command = f"python benchmarks/table_stable_gnn.py --data FOLDER --seeds {given.seeds} "
            command += f"--pretrain {given.pretrain} --cases {count}"
            results = {"table": rows, "holds": verdict(rows)}
            write_result(RESULT, command=command, seeds=range(given.seeds), results=results)
            write_result(TABLE, command=command, seeds=range(given.seeds), results=beside_the_paper(rows))
    cora = sorted(
        (row for row in read_json(RESULT)["results"]["table"] if row["graph"] == "cora"), key=lambda r: r["rate"]
    )
    lines = {
        NAMES[name]: [
            Point(100 * row["rate"], row["accuracy"][name]["mean"], row["accuracy"][name]["std"]) for row in cora
        ]
        for name in ("gcn", "gcn_jaccard", "stable")
    }
    draw(
        FIGURE,
        lines,
        title="Accuracy on Cora under Metattack",
        x="edges changed, %",
        y="test accuracy, %",
        scale=float,
    )


if __name__ == "__main__":
    main()
