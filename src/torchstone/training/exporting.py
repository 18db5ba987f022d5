"""A model outside Python: ``torch.export`` (``.pt2``) or ONNX (``.onnx``), checked against the eager model.

    exported = export_model(model, lambda batch: (torch.randn(batch, 3, 32, 32),), "model.onnx")
    print(exported.difference)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.errors import CallError, WorkError
from torchstone.extras import extra
from torchstone.instruments.running import deploy_form, forward, one_line

FORMATS = {".pt2": "torch.export", ".onnx": "ONNX"}
TOLERANCE = 1e-3
"""The largest difference from the eager model, as a share of its largest output, that is no failure."""
LARGEST_BATCH = 1024


@dataclass(frozen=True)
class Exported:
    """A file that was written and checked.

    Attributes:
        path: the file.
        format: ``torch.export`` or ``ONNX``.
        deploy: whether it holds the model's deploy form.
        batch: the batch that it takes; None for any up to :data:`LARGEST_BATCH`.
        checked: the batch sizes that were compared with the eager model.
        difference: the largest difference of any output.
        scale: the largest output of the eager model.
    """

    path: Path
    format: str
    deploy: bool
    batch: int | None
    checked: tuple[int, ...]
    difference: float
    scale: float


def export_model(
    model: nn.Module,
    example_inputs: Callable[[int], tuple[Tensor, ...]],
    out: str | Path,
    *,
    deploy: bool = True,
    batch: int | None = None,
) -> Exported:
    """Export a model in eval mode, by default its deploy form, and compare the file's answers with the eager model's.

    Args:
        model: it stays as it is.
        example_inputs: inputs (B, ...) by batch size.
        out: the file; ``.pt2`` or ``.onnx`` says which.
        deploy: export the deploy form where the model has one.
        batch: a fixed batch size; None for any.

    Raises:
        CallError: another ending, no such folder, or a model that cannot be exported: says why, and what to try.
        WorkError: the file's answers differ from the model's; no file is left.
    """
    out = Path(out)
    check_file(out)
    if batch is not None and batch < 1:
        raise CallError(f"batch must be a positive integer, got {batch}")
    eager = copy.deepcopy(model).eval()
    deployed = deploy_form(eager) if deploy else None
    sizes = (batch,) if batch else (1, 3)
    with torch.no_grad():
        expected = {size: _outputs(forward(eager, example_inputs(size))) for size in sizes}
        program = _program(deployed or eager, example_inputs(batch or 2), batch)
        beside = out.with_name(f".{out.stem}.part{out.suffix}")
        try:
            run = _write(program, example_inputs(batch or 2), beside)
            pairs = [
                (ours, theirs)
                for size in sizes
                for ours, theirs in zip(run(example_inputs(size)), expected[size], strict=True)
            ]
            difference = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
            scale = max(theirs.abs().max().item() for _, theirs in pairs)
            if not difference <= TOLERANCE * max(scale, 0.1):
                raise WorkError(
                    f"the exported model's answers differ from the eager one's by {difference:.3g} "
                    f"(largest output {scale:.3g}); nothing was written"
                )
            beside.replace(out)
        finally:
            beside.unlink(missing_ok=True)
    return Exported(out, FORMATS[out.suffix], deployed is not None, batch, sizes, difference, scale)


def check_file(out: Path) -> None:
    """Refuse a file that cannot be written, before anything is built.

    Raises:
        CallError: an ending that says no format, no such folder, or packages that are not installed.
    """
    if out.suffix not in FORMATS:
        raise CallError(f"the file's ending says what it is, {' or '.join(FORMATS)}: got {out.name}")
    if not out.parent.is_dir():
        raise CallError(f"there is no folder {out.parent}")
    if out.suffix == ".onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            extra(package, "export")


def _outputs(answer: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


def _program(model: nn.Module, inputs: Sequence[Tensor], batch: int | None) -> torch.export.ExportedProgram:
    """The model as a graph, its batch dynamic when no size is given."""
    dynamic = None
    if batch is None:
        size = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
        dynamic = tuple({0: size} for _ in inputs)
    try:
        return torch.export.export(model, tuple(inputs), dynamic_shapes=dynamic)
    except Exception as error:
        hint = "" if batch else "; a fixed batch size may be possible (--batch 1)"
        raise CallError(f"{type(model).__name__} cannot be exported: {one_line(error)}{hint}") from error


def _write(
    program: torch.export.ExportedProgram, inputs: Sequence[Tensor], path: Path
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Write the file and read it again; returns what runs it."""
    if path.suffix == ".pt2":
        torch.export.save(program, path)
        module = torch.export.load(path).module()
        return lambda given: _outputs(module(*given))
    import onnxruntime

    try:
        torch.onnx.export(program, tuple(inputs), path, dynamo=True, verbose=False, external_data=False)
    except Exception as error:
        raise CallError(f"the model has no ONNX form: {one_line(error)}; a .pt2 file has fewer limits") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [told.name for told in session.get_inputs()]

    def run(given: Sequence[Tensor]) -> list[Tensor]:
        fed = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, fed)]

    return run
