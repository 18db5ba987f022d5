"""Fine-tuning in the four modes of a block of convolution and norm, on CIFAR-10 classes that the weights never saw.

A small ResNet is trained on the first five classes of CIFAR-10, then fine-tuned on some images of the other five: with
batch statistics (train), with running statistics (eval), with the norms folded in every forward pass (tune) and with
the norms folded for good (deploy). The runs of a seed share initial weights, images and their order. The paper's claim:
tune learns what eval learns. Its warning: deploy, at a learning rate that suits the others, does not.

    python benchmarks/transfer_tune_mode.py --data FOLDER    # Parquet, with CIFAR-10's images and labels

About four minutes on one core. Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "transfer" / "tune_mode.json"
MODES: dict[str, list[dict[str, Any]]] = {
    "train": [],
    "eval": [{"name": "tune_mode", "args": {"mode": "eval"}}],
    "tune": [{"name": "tune_mode", "args": {"freeze": True}}],
    "deploy": [{"name": "tune_mode", "args": {"mode": "deploy"}}],
}
BEFORE, AFTER = range(5), range(5, 10)  # classes that are learned before, and in the fine-tuning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as Parquet files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of the fine-tuning")
    parser.add_argument("--epochs-before", type=int, default=4, help="of the training before")
    parser.add_argument("--limit", type=int, default=1000, help="images to fine-tune on")
    parser.add_argument("--limit-before", type=int, default=6000, help="images of the training before")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.05])
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer_tune_mode"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    results = measure(options)

    from torchstone.environment import write_result

    changed = "".join(
        f" --{name.replace('_', '-')} {getattr(options, name)}"
        for name in ("seeds", "epochs", "epochs_before", "limit", "limit_before")
        if getattr(options, name) != parser.get_default(name)
    )
    command = f"python benchmarks/transfer_tune_mode.py --data FOLDER{changed}"
    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train before, fine-tune in every mode with every learning rate and seed."""
    from seeded_runs import accuracies, difference, scores_of

    from torchstone.data import open_source
    from torchstone.errors import NonFiniteLoss
    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec
    from torchstone.training.fit import evaluate, fit

    network = ("ecanet_mini32", {"attention": "none"})
    folders = {name: options.runs / name for name in ("classes_before", "classes_after")}
    for folder, classes in zip(folders.values(), (BEFORE, AFTER), strict=True):
        write_classes(options.data, classes, folder)
    sgd = {"batch_size": 64, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "warmup_epochs": 0.5}
    before = Recipe(
        model=ModelSpec(*network),
        data=DataSpec(str(folders["classes_before"]), limit=options.limit_before, val_fraction=0.02),
        train=TrainSpec(epochs=options.epochs_before, lr=0.05, **sgd),
    )
    start = fit(before, options.runs / "before", device="cpu")
    print(f"before: validation accuracy {start.score:.4f}", flush=True)

    source = open_source(str(folders["classes_after"]))
    found: dict[str, Any] = {}
    for rate in options.rates:
        correct: dict[str, dict[int, list[float]]] = {mode: {} for mode in MODES}
        losses: dict[str, dict[int, list[float]]] = {mode: {} for mode in MODES}
        diverged: dict[str, list[int]] = {mode: [] for mode in MODES}
        for seed in range(options.seeds):
            for mode, transforms in MODES.items():
                recipe = Recipe(
                    model=ModelSpec(*network, str(start.path / "model.safetensors"), transforms),  # type: ignore[arg-type]
                    data=DataSpec(str(folders["classes_after"]), limit=options.limit, val_fraction=0.02),
                    train=TrainSpec(epochs=options.epochs, lr=rate, **sgd),
                    seed=seed,
                )
                folder = options.runs / f"{mode}-{rate:g}-{seed}"
                try:
                    run = fit(recipe, folder, device="cpu", source=source)
                except NonFiniteLoss as error:
                    diverged[mode].append(seed)
                    print(f"{mode}, rate {rate:g}, seed {seed}: {error}", flush=True)
                    continue
                losses[mode][seed] = [row["train_loss"] for row in run.rows]
                correct[mode][seed] = evaluate(folder, "test", device="cpu", source=source).per_sample.tolist()
                print(f"{mode}, rate {rate:g}, seed {seed}: {statistics.fmean(correct[mode][seed]):.4f}", flush=True)
        whole = {mode: by_seed for mode, by_seed in correct.items() if len(by_seed) == options.seeds}
        scores = scores_of(whole)
        found[f"learning rate {rate:g}"] = {
            "modes": {
                mode: {
                    "runs that diverged": len(diverged[mode]),
                    **({} if mode not in whole else accuracies({mode: whole[mode]}, scores)[mode]),
                    "last training loss by seed": [values[-1] for _, values in sorted(losses[mode].items())],
                }
                for mode in MODES
            },
            "differences": {
                f"tune - {other}": difference(scores, "tune", other)
                for other in MODES
                if other != "tune" and other in whole and "tune" in whole
            },
        }
    protocol = before.to_dict()["train"] | {"epochs": options.epochs, "lr": list(options.rates)}
    return {
        "network": {"name": network[0], "args": network[1]},
        "classes before": list(BEFORE),
        "classes after": list(AFTER),
        "validation accuracy before": start.score,
        "images before": options.limit_before,
        "images after": options.limit,
        **found,
        "protocol": {name: protocol[name] for name in (*sgd, "epochs", "lr")},
    }


def write_classes(data: Path, classes: range, folder: Path) -> None:
    """Write the images of some classes, numbered from 0, as a data set of its own."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "classes.json").is_file():
        return
    for split in ("train", "test"):
        files = sorted(data.glob(f"{split}*.parquet"))
        table = pyarrow.concat_tables([pyarrow.parquet.read_table(file, columns=["image", "label"]) for file in files])
        label = table["label"]
        table = table.filter(pyarrow.compute.is_in(label, pyarrow.array(list(classes), label.type)))
        numbered = pyarrow.compute.subtract(table["label"], pyarrow.scalar(classes.start, table["label"].type))
        pyarrow.parquet.write_table(table.set_column(1, "label", numbered), folder / f"{split}.parquet")
    names = json.loads((data / "classes.json").read_text())
    (folder / "classes.json").write_text(json.dumps([names[index] for index in classes]))


if __name__ == "__main__":
    main()
