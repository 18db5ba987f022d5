"""What GLMix's slots group, on photographs and on CIFAR-10; and how well the groups agree with the images' colours.

Draws a trained network's slot assignment maps: beside each image every pixel in the mean colour of the slot that it
mostly belongs to, and the image seen through the assignments of the slots that hold the most pixels. Then compares, on
test images of CIFAR-10, the same groups with clusters of the pixels' colours (k-means, as many as slots) by their
normalised mutual information, for the trained network and for networks as they start.

    torchstone train glmix_cifar10 data.source=FOLDER --out RUN
    python benchmarks/figure_glmix.py --run RUN --data FOLDER      # docs/images/glmix_slots.png and a result file

A minute on one core. The photographs come with scikit-learn.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from torchstone import create_model
from torchstone.data import open_images
from torchstone.environment import write_result
from torchstone.models.image.glmix import slot_assignments
from torchstone.training import load_run
from torchstone.training.pictures import sheet

HERE = Path(__file__).parent
RESULT = HERE / "results" / "claims" / "glmix_grouping.json"
FIGURE = HERE.parent / "docs" / "images" / "glmix_slots.png"
SHOWN, SLOTS_SHOWN, SIDE = (0, 1, 5, 13), 4, 128  # test images of CIFAR-10, slots, and pixels of a picture
AS_THEY_ARE = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run directory of a GLNet")
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--block", type=int, default=0, help="which of the blocks with slots, counted from 0")
    parser.add_argument("--images", type=int, default=100, help="test images whose groups are compared with colours")
    parser.add_argument("--seeds", type=int, default=3, help="networks as they start")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()

    model, info = load_run(options.run)
    model.eval()
    data = open_images(options.data, batch_size=1, eval_batch_size=options.images)
    normalise = {"mean": torch.tensor(data.mean).view(3, 1, 1), "std": torch.tensor(data.std).view(3, 1, 1)}
    normalised, _ = next(iter(data.test_dataloader()))
    images = (normalised * normalise["std"] + normalise["mean"]).clamp(0, 1)

    pictures = torch.cat([photographs(SIDE), resized(images[list(SHOWN)], SIDE)])
    columns = draw(pictures, maps(model, (pictures - normalise["mean"]) / normalise["std"], options.block)[1])
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    sheet(columns, AS_THEY_ARE).quantize(128).save(options.figure, optimize=True)

    name, trained = maps(model, normalised, options.block)
    colours = [clusters(image, trained.shape[1], trained.shape[-2:]) for image in images]
    started = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        fresh = create_model(info.recipe.model.name, **{**info.recipe.model.args, "num_classes": data.num_classes})
        started.append(agreement(maps(fresh.eval(), normalised, options.block)[1], colours))
    found = {"trained": agreement(trained, colours), "as they start": statistics.fmean(started)}
    changed = [
        f" --{key} {getattr(options, key)}"
        for key in ("block", "images", "seeds")
        if getattr(options, key) != parser.get_default(key)
    ]
    write_result(
        options.result,
        command=f"python benchmarks/figure_glmix.py --run RUN --data FOLDER{''.join(changed)}",
        seeds=list(range(options.seeds)),
        results={
            "block": name,
            "slots": trained.shape[1],
            "test images": len(images),
            "normalised mutual information of groups and colours": {**found, "as they start, by seed": started},
            "the trained network": {"model": info.recipe.to_dict()["model"], "train": info.recipe.to_dict()["train"]},
        },
    )
    print({key: round(value, 4) for key, value in found.items()})


def maps(model: nn.Module, x: Tensor, block: int) -> tuple[str, Tensor]:
    """The name of a block and its assignment maps (B, M, H, W)."""
    return list(slot_assignments(model, x).items())[block]


def photographs(side: int) -> Tensor:
    """scikit-learn's two photographs, their middle square, (2, 3, side, side) from 0 to 1."""
    found = []
    for image in load_sample_images().images:
        whole = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
        short = min(whole.shape[1:])
        top, left = ((length - short) // 2 for length in whole.shape[1:])
        found.append(resized(whole[None, :, top : top + short, left : left + short], side))
    return torch.cat(found)


def resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def draw(images: Tensor, assignments: Tensor) -> dict[str, Tensor]:
    """The columns of the figure: images, groups, and images through the slots that hold the most pixels."""
    shares = F.interpolate(assignments, size=images.shape[-2:])
    groups = F.one_hot(shares.argmax(1), shares.shape[1]).permute(0, 3, 1, 2).float()  # (B, M, H, W)
    held = groups.sum((2, 3))  # (B, M)
    means = torch.einsum("bmhw,bchw->bmc", groups, images) / held.clamp_min(1)[..., None]
    columns = {"image": images, "groups": torch.einsum("bmhw,bmc->bchw", groups, means)}
    largest = held.topk(min(SLOTS_SHOWN, shares.shape[1])).indices
    for rank in range(largest.shape[1]):
        share = shares.take_along_dim(largest[:, rank].view(-1, 1, 1, 1), 1)
        low, high = share.amin((2, 3), keepdim=True), share.amax((2, 3), keepdim=True)
        columns[f"slot {rank + 1}"] = images * (0.15 + 0.85 * (share - low) / (high - low).clamp_min(1e-12))
    return columns


def clusters(image: Tensor, count: int, size: tuple[int, int]) -> Any:
    """(H * W,) the colour cluster of every pixel of an image that has the size of a map."""
    pixels = F.adaptive_avg_pool2d(image, size).flatten(1).T.numpy()
    return KMeans(count, n_init=1, random_state=0).fit_predict(pixels)


def agreement(assignments: Tensor, colours: list[Any]) -> float:
    """The mean over images of the normalised mutual information of a pixel's slot and colour."""
    groups = assignments.argmax(1).flatten(1).numpy()
    return statistics.fmean(
        normalized_mutual_info_score(colour, group) for colour, group in zip(colours, groups, strict=True)
    )


if __name__ == "__main__":
    main()
