"""``torchstone convert``: a checkpoint that the authors released, as safetensors in our layout."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from torchstone import catalog
from torchstone.errors import CallError, unknown_name
from torchstone.files import write_bytes
from torchstone.verification.layouts import load_checkpoint


def convert(model: str, checkpoint: str | Path, out: str | Path) -> int:
    """Convert a released checkpoint strictly: every name and shape is the model's, classifier included.

    Args:
        model: one of our models.
        checkpoint: the authors' file, a path or URL; it is read without running anything in it.
        out: the ``.safetensors`` file to write.

    Returns:
        The number of tensors written.

    Raises:
        UnknownName: no such model.
        CallError: a file that cannot be read or does not fit, or another ending than ``.safetensors``.
        WriteFailed: the file cannot be written.
    """
    card = catalog.system_of(model)
    if card is None:
        raise unknown_name("model", model, catalog.variants())
    if Path(out).suffix != ".safetensors":
        raise CallError(f"the converted file is safetensors, so its name must end in .safetensors: got {out}")
    _, loaded = load_checkpoint(card.key, checkpoint, model)
    state = {name: value.contiguous() for name, value in loaded.state_dict().items()}
    write_bytes(out, save(state, metadata={"format": "pt", "model": model}))
    return len(state)
