"""VQGraph's table and its claim: a perceptron that is taught codes of the surroundings classifies nodes as its teacher.

On Cora and CiteSeer (the files of GNN-to-MLP distillation: largest component, 20 nodes a class to train, 30 a class to
validate), with every seed another split, the package's recipes train

* the teacher with GraphSAGE's convolutions, as in the paper's table, and the one with graph convolutions;
* PyG's GCN: a graph network without codes;
* a perceptron: the student's network, trained on labels alone;
* the student of the GraphSAGE teacher, and one that is taught class scores but no codes (``token_weight`` 0).

Transductive: all nodes are seen, those of the test without labels. Inductive: a fifth of the test nodes, and their
edges, do not exist until training has finished (``data.hold_out``); they are tested on the whole graph, of which the
student looks at their features alone. ``production`` in those rows is the score of all test nodes, seen ones on the
seen graph. Everything is selected on validation nodes; test nodes are read once, after that.

The claim holds when on all graphs and in both settings the student is within 2 points of its teacher or above it, at
least 10 above the perceptron, and above the student without codes by a paired gain of more than two standard errors;
it holds partly when some of this does.

    python benchmarks/table_vqgraph.py --data FOLDER --graphs cora citeseer --seeds 5

FOLDER holds ``cora_cpf/cora.npz`` and ``citeseer_cpf/citeseer.npz``. Runs are kept in ``--runs``: the command goes on
where it stopped. Both results are written after every seed from the second on.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchstone.data.graphs import open_graph
from torchstone.data.inductive import hold_out
from torchstone.environment import write_result
from torchstone.models.graph.vqgraph import perplexity
from torchstone.training import load_recipe
from torchstone.training.fit import evaluate, fit
from torchstone.training.runs import load_run

RESULTS = Path(__file__).parent / "results"
GRAPHS = ("cora", "citeseer")
SHARE = 0.2  # of the test nodes, held out
SETTINGS: dict[str, dict[str, Any]] = {"transductive": {}, "inductive": {"data.hold_out": SHARE}}
PLAIN = {"model.args": "{}", "train.epochs": 100, "train.lr": 1e-2, "train.weight_decay": 5e-4}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {  # which of the graph's two recipes, and what is changed in it
    "teacher": ("teacher", {}),
    "teacher of graph convolutions": ("teacher", {"model.name": "vqgraph_gcn"}),
    "plain GCN": ("teacher", {"model.name": "pyg:gcn", **PLAIN}),
    "perceptron": ("labels", {}),
    "student": ("student", {}),
    "student without codes": ("student", {"method.args.token_weight": 0}),
}
PAPER = {"cora, transductive, student": 83.9, "citeseer, transductive, student": 76.0}
"""Test accuracy in per cent of the paper's main table (GraphSAGE teacher), rounded, as listed elsewhere; not checked
against the paper, which gives more rows and spreads."""
NEAR, ABOVE = 2.0, 10.0  # points

Scores = dict[str, dict[str, float]]
"""Row -> what was measured in one seed, in per cent."""


def train(graph: str, setting: str, network: str, seed: int, data: Path, runs: Path) -> Path:
    """A finished run of one of the package's recipes."""
    kind, changed = NETWORKS[network]
    changes = {
        "data.source": source(data, graph),
        "data.split_seed": seed,
        "seed": seed,
        **SETTINGS[setting],
        **changed,
    }
    folder = runs / f"{graph}-{setting}-{seed}"
    if kind == "student":
        changes["method.teacher"] = folder / "teacher"
    name = f"vqgraph_{graph}_teacher" if kind == "teacher" else f"vqgraph_{graph}"
    recipe = load_recipe(name, [f"{key}={value}" for key, value in changes.items()])
    if kind == "labels":
        recipe = dataclasses.replace(recipe, method=None)
    run = fit(recipe, folder / network.replace(" ", "-"), device="cpu")
    print(f"{run.path}: {run.score:.3f} on validation nodes, {run.seconds:.0f} s", flush=True)
    if network in ("teacher", "student"):
        for line in run.unmet:
            print(f"  {line}", flush=True)
    return run.path


def source(data: Path, graph: str) -> Path:
    return data / f"{graph}_cpf" / f"{graph}.npz"


def of_seed(graphs: list[str], seed: int, data: Path, runs: Path) -> Scores:
    """All networks on one split of every graph."""
    found: Scores = {}
    for graph in graphs:
        split = open_graph(str(source(data, graph)), split="per-class-30", split_seed=seed, normalize=False)
        seen = hold_out(split, SHARE, seed)
        for setting in SETTINGS:
            for network in NETWORKS:
                run = train(graph, setting, network, seed, data, runs)
                score = 100 * evaluate(run, "test", device="cpu").score
                row = found[f"{graph}, {setting}, {network}"] = {"ours": score}
                if setting == "inductive":
                    row["production"] = SHARE * score + (1 - SHARE) * percent(run, seen.graph)
                if network == "teacher":
                    row["codes in use"] = codes_in_use(run, split.graph)
    return found


@torch.inference_mode()
def percent(run: Path, graph: Any) -> float:
    """Accuracy on a graph's test nodes."""
    network, _ = load_run(run)
    right = network(graph.x, graph.edge_index).argmax(1) == graph.y
    return 100 * right[graph.test_mask].float().mean().item()


@torch.inference_mode()
def codes_in_use(run: Path, graph: Any) -> float:
    """Perplexity of a teacher's codes."""
    network: Any = load_run(run)[0]
    codes = network.tokenize(graph.x, graph.edge_index).quantized.codes
    return perplexity(codes, len(network.quantizer.codebook)).item()


def summary(values: list[float]) -> dict[str, Any]:
    return {"mean": round(float(np.mean(values)), 2), "std": round(float(np.std(values, ddof=1)), 2)}


def table(seeds: list[Scores]) -> dict[str, Any]:
    """Ours, in per cent over seeds, beside the paper's."""
    rows = {}
    for name, first in seeds[0].items():
        ours, paper = {**summary([seed[name]["ours"] for seed in seeds]), "seeds": len(seeds)}, PAPER.get(name)
        rows[name] = {
            "paper": None if paper is None else {"mean": paper},
            "ours": ours,
            "scores": [round(seed[name]["ours"], 2) for seed in seeds],
            **{key: summary([seed[name][key] for seed in seeds]) for key in first if key != "ours"},
        }
    return rows


def claim(graphs: list[str], seeds: list[Scores]) -> dict[str, Any]:
    """Paired gains of the student, and the verdict."""
    gains: dict[str, Any] = {}
    as_good, better, adds = {}, {}, {}
    for graph in graphs:
        for setting in SETTINGS:
            place = f"{graph}, {setting}"

            def over(other: str, place: str = place) -> dict[str, Any]:
                gain = [seed[f"{place}, student"]["ours"] - seed[f"{place}, {other}"]["ours"] for seed in seeds]
                return gains.setdefault(f"{place}: student over {other}", summary(gain))

            teacher, perceptron, codes = (over(one) for one in ("teacher", "perceptron", "student without codes"))
            as_good[place], better[place] = teacher["mean"] >= -NEAR, perceptron["mean"] >= ABOVE
            adds[place] = codes["mean"] > 2 * codes["std"] / len(seeds) ** 0.5
    parts = [*as_good.values(), *better.values(), *adds.values()]
    return {
        "gains": gains,
        "the student is as good as its teacher": as_good,
        "the student is far better than the perceptron": better,
        "the codes add to it": adds,
        "holds": "yes" if all(parts) else "partly" if any(parts) else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/table_vqgraph"))
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be at least 2: the table has a spread")
    torch.set_num_threads(1)
    found: list[Scores] = []
    for seed in range(given.seeds):
        found.append(of_seed(given.graphs, seed, given.data, given.runs))
        if len(found) > 1:
            graphs = " ".join(given.graphs)
            command = f"python benchmarks/table_vqgraph.py --data FOLDER --graphs {graphs} --seeds {len(found)}"
            for kind, results in (("tables", table(found)), ("claims", claim(given.graphs, found))):
                write_result(RESULTS / kind / "vqgraph.json", command=command, seeds=range(len(found)), results=results)


if __name__ == "__main__":
    main()
