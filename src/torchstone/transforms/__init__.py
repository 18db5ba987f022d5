"""Transforms: a model in, a model out. See :mod:`torchstone.transforms.contract` for what all of them keep to.

* :func:`apply` - transform a model by the transform's name; :func:`replay` - the same again from its plan
* :func:`save_model`, :func:`load_model` - a transformed model as a folder without code
* :func:`names`, :func:`options_of` - what there is
"""

from torchstone.transforms.contract import (
    Batches,
    Finetune,
    Plan,
    Report,
    Result,
    apply,
    check_options,
    names,
    options_of,
    replay,
)
from torchstone.transforms.saving import load_model, save_model

__all__ = [
    "Batches",
    "Finetune",
    "Plan",
    "Report",
    "Result",
    "apply",
    "check_options",
    "load_model",
    "names",
    "options_of",
    "replay",
    "save_model",
]
