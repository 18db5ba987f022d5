"""Training: recipes, tasks, runs that resume exactly, prediction. Names load on first use.

* :func:`load_recipe` - an experiment from YAML; :func:`recipe_names`, :func:`copy_recipe`
* :func:`torchstone.training.fit.fit` - train a recipe into a run directory; :func:`evaluate` - score a finished run
* :func:`load_run` - the trained model; :func:`torchstone.training.predict.predict` - what it says of images
* :func:`load_method` - the trained method of a pre-training run, with its network
* :func:`get_task` - what a domain means
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchstone.training.fit import Evaluation, FitProgress, RunResult, evaluate
    from torchstone.training.predict import Prediction
    from torchstone.training.pretraining import load_method
    from torchstone.training.recipe import (
        DataSpec,
        MethodSpec,
        ModelSpec,
        Recipe,
        TrainSpec,
        copy_recipe,
        load_recipe,
        recipe_names,
    )
    from torchstone.training.runs import RunDirectory, RunInfo, load_run
    from torchstone.training.tasks import TASKS, Task, get_task

_HOME = {
    "TASKS": "tasks",
    "DataSpec": "recipe",
    "Evaluation": "fit",
    "FitProgress": "fit",
    "MethodSpec": "recipe",
    "ModelSpec": "recipe",
    "Prediction": "predict",
    "Recipe": "recipe",
    "RunDirectory": "runs",
    "RunInfo": "runs",
    "RunResult": "fit",
    "Task": "tasks",
    "TrainSpec": "recipe",
    "copy_recipe": "recipe",
    "evaluate": "fit",
    "get_task": "tasks",
    "load_method": "pretraining",
    "load_recipe": "recipe",
    "load_run": "runs",
    "recipe_names": "recipe",
}

__all__ = [
    "TASKS",
    "DataSpec",
    "Evaluation",
    "FitProgress",
    "MethodSpec",
    "ModelSpec",
    "Prediction",
    "Recipe",
    "RunDirectory",
    "RunInfo",
    "RunResult",
    "Task",
    "TrainSpec",
    "copy_recipe",
    "evaluate",
    "get_task",
    "load_method",
    "load_recipe",
    "load_run",
    "recipe_names",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
