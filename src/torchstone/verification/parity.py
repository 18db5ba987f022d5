"""Comparing our objects with recorded answers of the authors' code.

A system's adapter is a file ``<key>.py`` with ``run(case) -> dict[str, Tensor]``: it builds our public objects for
``case.entry`` and ``case.kwargs``, loads ``case.state`` through the public converter, calls and renames. It computes
nothing of its own. An adapter may also have ``example(case)``, which answers structured values for a case without
numbers (:func:`torchstone.verification.cases.draw_held_out`).

The rule, for every output ``y`` of ours and ``r`` recorded:

* the names are exactly the recorded ones, the shapes are equal;
* integers and booleans (all recorded as int64) are equal;
* floats (recorded as float32; float64 of ours is compared as it is) satisfy
  ``max|y - r| <= bound * max(max|r|, 0.1)``, with ``bound = 1e-4`` unless the case's notes justify another one;
* NaN and infinity are equal at the same places, or the output fails.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from torchstone.catalog import Card
from torchstone.errors import CallError
from torchstone.models.pretrained import Convert, check_layout
from torchstone.verification.cases import Case, RecordedCase, TensorSpec

BOUND = 1e-4
_PACKAGE = Path(__file__).parent.parent
_CHECKOUT = _PACKAGE.parent.parent / "tests" / "parity"


@dataclass(frozen=True)
class Check:
    """One output of one case.

    Attributes:
        case: name of the case.
        output: name of the output.
        error: largest absolute difference; None where values could not be compared.
        tolerance: what the error may be (0 for integers); None where values could not be compared.
        problem: why the output fails, empty when it passes.
    """

    case: str
    output: str
    error: float | None = None
    tolerance: float | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem

    @property
    def ratio(self) -> float | None:
        """Error as a share of what is allowed; None where only equality is, or where values were not compared."""
        return self.error / self.tolerance if self.tolerance and self.error is not None else None

    def __str__(self) -> str:
        return f"{self.case}: {self.output}: {self.problem or 'ok'}"


def parity_folder() -> Path:
    """Where adapters and the cases that come with the project are: of the checkout, else of the installed package."""
    return _CHECKOUT if _CHECKOUT.is_dir() else _PACKAGE / "_parity"


@cache
def load_adapter(key: str) -> ModuleType:
    """The adapter of a system.

    Raises:
        CallError: the system has none.
    """
    path = parity_folder() / f"{key}.py"
    spec = importlib.util.spec_from_file_location(f"torchstone_parity_{key}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise CallError(f"{key} has no parity adapter ({path.name} in {path.parent})")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bound_of(case: Case, card: Card) -> float:
    """The relative error bound of a case: the common one, or the one that the card takes from the case's notes.

    Raises:
        CallError: the card states a bound for this case with a reason that is no quotation from the notes.
    """
    for entry in card.tolerance:
        if entry.case == case.name:
            if not entry.reason or entry.reason not in case.notes:
                raise CallError(
                    f"{card.key}.toml: the reason for the tolerance of {case.name} must be quoted from its notes, "
                    f"which say: {case.notes}"
                )
            return entry.bound
    return BOUND


def run(case: Case, adapter: ModuleType, seed: int = 0) -> dict[str, Tensor]:
    """What our objects answer: the adapter's outputs, from copies of the case's tensors and a fixed seed.

    The random state of the caller is left as it was.
    """
    python, numeric = random.getstate(), numpy.random.get_state()  # noqa: NPY002 - the global state is what is kept
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)  # noqa: NPY002
        try:
            return adapter.run(_copy(case))
        finally:
            random.setstate(python)
            numpy.random.set_state(numeric)  # noqa: NPY002


def _copy(case: Case) -> Case:
    tensors = dict(case.__dict__)
    tensors["inputs"] = {name: value.clone() for name, value in case.inputs.items()}
    tensors["state"] = None if case.state is None else {name: value.clone() for name, value in case.state.items()}
    return Case(**tensors)


def check_recorded(recorded: RecordedCase, adapter: ModuleType, bound: float = BOUND) -> list[Check]:
    """Run a case and compare every output with the official one."""
    return check(recorded.case, recorded.expected, run(recorded.case, adapter), bound)


def check(case: Case, expected: Mapping[str, Tensor], got: Mapping[str, Any], bound: float = BOUND) -> list[Check]:
    """Compare outputs with the official ones, by the rule at the head of this module.

    Args:
        case: the case, for its name and the recorded names, shapes and dtypes.
        expected: the recorded values.
        got: our values under the recorded names.
        bound: relative error allowed to floats.

    Returns:
        One check per recorded output and one per surplus output.
    """
    checks = check_described(case, got)
    return [
        _check_values(check, expected[check.output], got[check.output], bound) if check.ok else check
        for check in checks
    ]


def check_described(case: Case, got: Mapping[str, Any]) -> list[Check]:
    """Compare names, shapes and kinds of outputs with the recorded ones, without looking at values."""
    checks = [Check(case.name, name, problem=_differs(spec, got, name)) for name, spec in case.outputs.items()]
    surplus = [name for name in got if name not in case.outputs]
    return checks + [Check(case.name, name, problem="is not among the recorded outputs") for name in surplus]


def _differs(spec: TensorSpec, got: Mapping[str, Any], name: str) -> str:
    if name not in got:
        return f"is missing (recorded: {spec})"
    value = got[name]
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, not a tensor (recorded: {spec})"
    floats = (torch.float32, torch.float64)
    integers = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if value.dtype not in (floats if spec.dtype.is_floating_point else integers):
        return f"is {TensorSpec(tuple(value.shape), value.dtype)}, another dtype than recorded: {spec}"
    if tuple(value.shape) != spec.shape:
        return f"has shape {list(value.shape)}, recorded is {list(spec.shape)}"
    return ""


def _check_values(described: Check, expected: Tensor, got: Tensor, bound: float) -> Check:
    case, output = described.case, described.output
    got = got.detach().cpu()
    if not expected.is_floating_point():
        different = int((got.to(torch.int64) != expected).sum())
        problem = f"{different} of {expected.numel()} integers differ" if different else ""
        error = float((got.to(torch.float64) - expected.to(torch.float64)).abs().max()) if expected.numel() else 0.0
        return Check(case, output, max(error, float(different > 0)), 0.0, problem)

    got, expected = got.to(torch.float64), expected.to(torch.float64)
    finite = expected.isfinite()
    if not torch.equal(got.isfinite(), finite) or not torch.equal(
        got[~finite].nan_to_num(nan=0.0), expected[~finite].nan_to_num(nan=0.0)
    ):
        return Check(case, output, problem=f"NaN or infinity at other places ({int((~got.isfinite()).sum())} of ours)")
    got, expected = got[finite], expected[finite]
    error = float((got - expected).abs().max()) if expected.numel() else 0.0
    scale = max(float(expected.abs().max()) if expected.numel() else 0.0, 0.1)
    tolerance = bound * scale
    problem = "" if error <= tolerance else f"error {error:.3g} exceeds {tolerance:.3g}"
    return Check(case, output, error, tolerance, problem)


def load_state(model: nn.Module, case: Case, convert: Convert | None = None) -> nn.Module:
    """Load a case's official weights strictly and set the mode it was recorded in.

    Nothing is loaded when ``case.state`` is None. The mode is set when it is ``"train"`` or ``"eval"``; where the case
    tells it in a sentence, the adapter sets it.

    Args:
        model: ours, as built for the case.
        case: the case.
        convert: the system's public converter ``(state, model) -> state``; None where our names are the official ones.

    Returns:
        The same model.

    Raises:
        CallError: names or shapes differ; the message lists them.
    """
    if case.state is not None:
        state = convert(case.state, model) if convert else case.state
        check_layout(model, state)
        model.load_state_dict(state)
    return model.train(case.mode == "train") if case.mode in ("train", "eval") else model


def record(model: nn.Module, modules: Mapping[str, nn.Module], *inputs: Any, **options: Any) -> dict[str, Any]:
    """Call a model and keep what some of its modules answered.

    Args:
        model: called as ``model(*inputs, **options)``.
        modules: submodules by the name that their outputs get.

    Returns:
        The outputs by name, and what the model returned under ``"return"``.

    Raises:
        CallError: a module was not called, or more than once.
    """
    calls: dict[str, list[Any]] = {name: [] for name in modules}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: Any, answer: Any) -> None:
            # A copy: a later layer may work in place on what the module answered.
            calls[name].append(answer.clone() if isinstance(answer, Tensor) else answer)

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        returned = model(*inputs, **options)
    finally:
        for hook in hooks:
            hook.remove()
    for name, answers in calls.items():
        if len(answers) != 1:
            raise CallError(f"the module recorded as {name!r} was called {len(answers)} times, expected once")
    return {**{name: answers[0] for name, answers in calls.items()}, "return": returned}
