"""``torchstone convert``: a released checkpoint as safetensors in our layout."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch

from torchstone import catalog
from torchstone.errors import CallError, unknown_name
from torchstone.files import write_bytes
from torchstone.models.registry import create_model


def convert(name: str, checkpoint: str | Path, out: str | Path) -> int:
    """Convert a checkpoint in the authors' layout, strictly, and write it in ours.

    Classes and input channels are the file's: nothing of it is adapted or left out.

    Args:
        name: the model the checkpoint belongs to.
        checkpoint: the authors' file, a path or URL; nothing in it is run.
        out: the ``.safetensors`` file to write.

    Returns:
        The number of tensors written.

    Raises:
        UnknownName: no such model.
        CallError: the file is damaged or does not fit (the differences are listed), or ``out`` has another suffix.
        WriteFailed: ``out`` cannot be written.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise CallError(f"the converted file is written as safetensors; name it {out.with_suffix('.safetensors')}")
    if catalog.system_of(name) is None:
        raise unknown_name("model", name, catalog.variants())
    told = create_model(name, pretrained=checkpoint).pretrained_cfg  # the loader notes there what it read off the file
    assert isinstance(told, dict)
    model = create_model(name, pretrained=checkpoint, num_classes=told["num_classes"], in_chans=told["input_size"][0])
    state = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    write_bytes(out, safetensors.torch.save(state, metadata={"format": "pt", "model": name}))
    return len(state)
