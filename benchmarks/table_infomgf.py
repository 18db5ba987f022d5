"""InfoMGF's table: classification and clustering on all of HeCo's ACM, on its views, their union and the fused graphs.

    python benchmarks/table_infomgf.py --data FOLDER [--seeds 3] [--epochs 100]

FOLDER is HeCo's ACM. Every representation is the recipe ``infomgf_acm`` or ``infomgf_acm_ra`` that comes with the
package, trained with another seed. Graphs are judged by the paper's protocols: a fresh graph convolutional classifier
with 20, 40 and 60 labels a class (HeCo's three splits), and k-means of ten seeds on embeddings, those of the encoder
that InfoMGF-LA trained, on that graph (of InfoMGF-RA's graph: by its own encoder). Scores are per cent.

The paper's graph is another ACM (3025 papers), so its figure stands beside ours as a landmark, not as a target. Of its
tables only one accuracy on ACM could be looked up, in a public listing that does not say of which version, nor with how
many labels; it stands in the row of InfoMGF-LA with the fewest.

Runs and scores are kept in ``--runs``: the command goes on where it stopped. The result is written after every part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchstone.data.graphs import GraphSplit, open_graph
from torchstone.data.multiplex import LABELS_A_CLASS, PARTS, VIEWS, read_multiplex
from torchstone.environment import write_result
from torchstone.files import write_json
from torchstone.methods.infomgf import InfoMGF, WeightedGraph, classify, cluster
from torchstone.methods.infomgf.graphs import normalized, view_structure
from torchstone.training import load_recipe
from torchstone.training.fit import fit
from torchstone.training.pretraining import load_method

RESULT = Path(__file__).parent / "results" / "tables" / "infomgf.json"
RECIPES = {"InfoMGF-RA": "infomgf_acm_ra", "InfoMGF-LA": "infomgf_acm"}
ENCODER = "InfoMGF-LA"  # whose encoder embeds the nodes on given graphs
GIVEN = (*VIEWS, "union")
GRAPHS = (*GIVEN, *RECIPES)
CLASSIFICATION, CLUSTERING = ("accuracy", "macro_f1"), ("nmi", "ari", "accuracy", "f1")
PAPER = {  # as wizwand.com lists it for the paper, without version and number of labels
    ("InfoMGF-LA", "accuracy, 20 labels a class"): {"mean": 92.81, "graph": "another ACM"}
}

Judged = dict[str, float]


class Bench:
    """The graph, its splits, and what has been judged so far."""

    def __init__(self, data: Path, runs: Path, epochs: int) -> None:
        self.data, self.runs, self.epochs = data, runs, epochs
        self.opened: GraphSplit | None = None
        self.masks: list[tuple[Tensor, ...]] = []

    def graph(self) -> Any:
        if self.opened is None:
            raw = read_multiplex(self.data)
            splits = zip(*(torch.from_numpy(raw[f"geom_{part}_mask"]) for part in PARTS), strict=True)
            self.masks = list(splits)
            self.opened = open_graph(str(self.data), split="fixed:0", normalize=False)
        return self.opened.graph

    def trained(self, version: str, seed: int) -> InfoMGF:
        """The recipe's method after training with a seed, with the graph before it."""
        changes = [f"data.source={self.data}", f"seed={seed}", f"train.epochs={self.epochs}"]
        graph = self.graph()
        place = self.runs / f"{RECIPES[version]}-{self.epochs}-{seed}"
        fit(load_recipe(RECIPES[version], changes), place, device="cpu", source=self.opened)
        method: Any = load_method(place)[0]
        method.observe(graph.x, graph.views)
        return method

    def given(self, name: str) -> WeightedGraph:
        graph = self.graph()
        edges = graph.views[name] if name in graph.views else torch.cat(list(graph.views.values()), 1)
        structure = view_structure(edges, len(graph.x))
        return normalized(structure, torch.ones(structure.edge_index.shape[1]))

    def classified(self, graph: WeightedGraph, seed: int) -> Judged:
        """Scores of the classifier, for each number of labels a class."""
        data = self.graph()
        found = {}
        for count, masks in zip(LABELS_A_CLASS, self.masks, strict=True):
            scores = classify(graph, data.x, data.y, *masks, seeds=[seed]).mean
            found |= {f"{score}, {count} labels a class": 100 * scores[score] for score in CLASSIFICATION}
        return found

    def clustered(self, method: InfoMGF, graph: WeightedGraph) -> Judged:
        scores = cluster(method.embeddings(graph), self.graph().y).mean
        return {f"{score}, clusters": 100 * scores[score] for score in CLUSTERING}

    def judge(self, version: str, seed: int) -> dict[str, Judged]:
        """Scores by graph of what one training is needed for; LA's serves the given graphs too."""
        method = self.trained(version, seed)
        with torch.no_grad():
            fused = method.fused_graph()
            found = {version: self.classified(fused, seed) | self.clustered(method, fused)}
            if version == ENCODER:
                for name in GIVEN:
                    graph = self.given(name)
                    found[name] = self.classified(graph, seed) | self.clustered(method, graph)
        return found


def rows(found: dict[str, list[Judged]]) -> dict[str, Any]:
    """Ours, and the paper's where there is one: a row for each score and graph."""
    table: dict[str, Any] = {}
    scores = [f"{score}, {count} labels a class" for count in LABELS_A_CLASS for score in CLASSIFICATION]
    for score in [*scores, *(f"{score}, clusters" for score in CLUSTERING)]:
        for name in GRAPHS:
            values = [round(judged[score], 2) for judged in found.get(name, [])]
            if not values:
                continue
            ours: dict[str, Any] = {"mean": round(float(np.mean(values)), 2)}
            if len(values) > 1:
                ours["std"] = round(float(np.std(values, ddof=1)), 2)
            ours["seeds"] = len(values)
            table[f"{score}: {name}"] = {"paper": PAPER.get((name, score)), "ours": ours, "scores": values}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--runs", type=Path, default=Path("runs/table_infomgf"))
    given = parser.parse_args()
    bench = Bench(given.data, given.runs, given.epochs)
    found: dict[str, list[Judged]] = {}
    for seed in range(given.seeds):
        for version in RECIPES:
            kept = given.runs / f"{version}-{given.epochs}-{seed}.json"
            if not kept.is_file():
                write_json(kept, bench.judge(version, seed))
            for name, judged in json.loads(kept.read_text()).items():
                found.setdefault(name, []).append(judged)
            command = f"python benchmarks/table_infomgf.py --data FOLDER --seeds {given.seeds} --epochs {given.epochs}"
            write_result(RESULT, command=command, seeds=range(seed + 1), results=rows(found))
            print(f"seed {seed}, {version}: {found[version][-1]}", flush=True)


if __name__ == "__main__":
    main()
