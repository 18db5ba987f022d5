"""Training a recipe into a run directory, and evaluating what came out.

    result = fit(load_recipe("digits"), "runs/digits")
    test = evaluate("runs/digits", "test")

:func:`fit` resumes exactly: killed at any moment, the same call goes on from the last finished epoch and ends with the
weights and metrics, bit for bit, of a run that was never interrupted (same machine, versions and thread count).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy
import safetensors
import safetensors.torch
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from torchstone import __version__
from torchstone.errors import CallError
from torchstone.files import writing
from torchstone.methods.registry import finishes
from torchstone.seeding import seed_everything_at
from torchstone.training.devices import Processes, check_strategy, resolve_device, trainer_options
from torchstone.training.optimizers import check_optimizer
from torchstone.training.pretraining import objective
from torchstone.training.recipe import Recipe, TrainSpec
from torchstone.training.runs import (
    RunDirectory,
    identity,
    identity_facts,
    load_checkpoint,
    load_run,
    read_info,
    resolved,
    save_checkpoint,
)
from torchstone.training.supervised import Trainable
from torchstone.training.tasks import Task, TaskData, get_task
from torchstone.training.transforming import check_sync_batchnorm, replay_all, transform_for
from torchstone.transforms.contract import Plan, check_options

__all__ = ["Evaluation", "FitProgress", "RunResult", "evaluate", "fit", "identity"]


@dataclass(frozen=True)
class FitProgress:
    """Where training stands, after a step or, with ``step == steps`` and ``score`` of this epoch, after an epoch.

    Args:
        epoch: the epoch at work, from 1.
        epochs: epochs in all.
        step: batches of this epoch that are done.
        steps: batches in an epoch.
        loss: of the last batch.
        score: the primary validation metric after the last finished epoch; None before the first.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    score: float | None


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Args:
        path: its directory.
        identity: its identity.
        metric: the primary metric's name.
        score: its validation value after the epoch whose weights were kept.
        rows: the rows of ``metrics.jsonl``.
        seconds: time spent on the epochs.
        trained: epochs that this call trained; 0 when the run was finished already.
        unmet: which of the recipe's expectations the run missed, in words.
    """

    path: Path
    identity: str
    metric: str
    score: float
    rows: list[dict[str, Any]]
    seconds: float
    trained: int
    unmet: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """A finished run on one split.

    Args:
        score: the primary metric, the mean of ``per_sample``.
        per_sample: each sample's share of it, shape (N,).
        predictions: what the model decided, one row per sample.
        targets: what was right, one row per sample.
        classes: names of the classes.
    """

    score: float
    per_sample: Tensor
    predictions: Tensor
    targets: Tensor
    classes: list[str]


# --- fit


def fit(
    recipe: Recipe,
    out: str | Path,
    *,
    device: str = "auto",
    devices: int | None = None,
    strategy: str = "auto",
    source: Any = None,
    progress: Callable[[FitProgress], None] | None = None,
) -> RunResult:
    """Train a recipe into a run directory, going on where an interrupted call stopped.

    Args:
        recipe: what to train.
        out: the run directory; created when needed. A finished run of the same identity is returned at once.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        devices: processes on this machine; see :meth:`Processes.detect`.
        strategy: ``auto`` (one process, or DDP when there are several), ``ddp`` or ``fsdp``.
        source: the recipe's data where they are open already: ``.source`` of their data module.
        progress: called after every step and epoch in the first process.

    Raises:
        CallError: a recipe that cannot work, a folder that cannot be written or belongs to another run, a damaged
            checkpoint.
        NonFiniteLoss: names epoch and step.
        WriteFailed: the disk is full, ...; the last checkpoint stands and the same call goes on from it.
    """
    task = objective(recipe)
    check_optimizer(recipe.train)
    measured = list(dict.fromkeys(["train_loss", "val_loss", f"val_{task.metric}"]))
    for name in recipe.expect:
        if name not in measured:
            raise CallError(f"expect.{name} is not measured; valid: {', '.join(measured)}")
    recipe = resolved(recipe, task.sources)
    for step in recipe.model.transforms:
        check_options(step.name, step.args)
    processes = Processes.detect(devices)
    where = resolve_device(device)
    check_sync_batchnorm(recipe.model.transforms, _shares_batchnorm(recipe.train, processes, where.type))
    check_strategy(where, processes, strategy)
    if strategy == "fsdp" and recipe.train.clip_grad is not None:
        raise CallError("train.clip_grad does not work with strategy fsdp: Lightning cannot clip sharded gradients")
    if strategy == "fsdp" and recipe.train.select != "last":
        raise CallError(
            f"train.select={recipe.train.select} does not work with strategy fsdp: no process holds all weights"
        )
    if strategy == "fsdp" and recipe.train.ema_decay is not None:
        raise CallError("train.ema_decay does not work with strategy fsdp: no process holds all weights")
    run = RunDirectory(out)
    with contextlib.ExitStack() as stack:
        if processes.first:
            stack.enter_context(run.locked())
        stack.enter_context(_quiet())
        stack.enter_context(isolate_rng())
        stack.enter_context(_deterministic())
        data = task.open_data(recipe.data, recipe.train, recipe.seed, source)
        facts = identity_facts(recipe, data.fingerprint)
        if processes.first:
            run.check_identity(facts)
        trained = 0
        if not run.finished:
            seed_everything_at("weights", recipe.seed)
            model = task.build_model(recipe.model, data, recipe.train)
            model, plans = _transformed(model, recipe, task, data, run, where)
            module = task.module(model, recipe, data)
            if processes.first:
                run.begin(
                    recipe,
                    facts,
                    model_args=task.all_model_args(recipe.model, data, recipe.train),
                    plans=plans,
                    classes=data.classes,
                    preprocessing=data.preprocessing(),
                    data=data.describe(),
                )
            unused = processes.world > 1 and task.has_unused_parameters(model, data)
            options = trainer_options(where, processes, strategy, unused)
            trained = _train(module, data, recipe, run, task, processes, options, progress)
    return _result(run, recipe, task, identity(recipe, data.fingerprint), trained)


def _shares_batchnorm(train: TrainSpec, processes: Processes, accelerator: str) -> bool:
    """Whether processes share batch statistics."""
    return train.sync_batchnorm and processes.world > 1 and accelerator == "cuda"


def _transformed(
    model: nn.Module, recipe: Recipe, task: Task, data: Any, run: RunDirectory, device: torch.device
) -> tuple[nn.Module, list[Plan]]:
    """The network after the recipe's transforms, and their plans; a run with a checkpoint has its plans already, and
    the weights that go with them in the checkpoint."""
    if not recipe.model.transforms:
        return model, []
    if run.checkpoint.is_file():
        return replay_all(model, run.plans()), run.plans()
    result = transform_for(recipe, model, task, data, device)
    return result.model, result.plans


def _train(
    module: Trainable,
    data: Any,
    recipe: Recipe,
    run: RunDirectory,
    task: Task,
    processes: Processes,
    options: dict[str, Any],
    progress: Callable[[FitProgress], None] | None,
) -> int:
    """Train the epochs that are left and write the outcome; returns how many there were."""
    train = recipe.train
    _check_batches(module, train, processes.world)
    done = run.resume() if processes.first else _epochs_done(run)
    before = run.rows()[:done]
    if done < train.epochs and not _stops(train, before) and not _out_of_patience(train, before, task):
        cluster = options.pop("cluster_environment")
        trainer = Trainer(
            **options,
            plugins=[_WholeCheckpoints(), cluster],
            precision=train.precision,  # type: ignore[arg-type]
            max_epochs=train.epochs,
            limit_train_batches=module.steps_per_epoch * train.accumulate,
            accumulate_grad_batches=train.accumulate,
            gradient_clip_val=train.clip_grad,
            sync_batchnorm=_shares_batchnorm(train, processes, options["accelerator"]),
            use_distributed_sampler=False,
            callbacks=[_Epochs(run, task, train, done, progress if processes.first else None)],
            default_root_dir=run.path,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        checkpoint = str(run.checkpoint) if done else None
        with _interruptible():
            trainer.fit(module.train(), datamodule=_FromEpoch(data, done), ckpt_path=checkpoint, weights_only=True)
    if processes.first:
        kept = load_checkpoint(run.checkpoint)
        rows = run.rows()
        run.keep(task.parts(kept.get("kept_weights") or _weights(kept["state_dict"], module)))
        task.illustrate(run.path, recipe, data)
        run.finish(
            {
                "identity": identity(recipe, data.fingerprint),
                "task": task.name,
                "metric": task.metric,
                "maximize": task.maximize,
                "score": _kept_row(train, rows, task)[f"val_{task.metric}"],
                "kept_epoch": _kept_row(train, rows, task)["epoch"],
                "epochs": len(rows),
                "steps": len(rows) * module.steps_per_epoch,
                "seconds": sum(row["seconds"] for row in rows),
                "version": __version__,
            },
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
    return len(run.rows()) - done


def _weights(state: Mapping[str, Tensor], module: Trainable) -> dict[str, Tensor]:
    """What is kept of a module's state."""
    prefix = "model." if module.average is None else "average.module."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _kept_row(train: TrainSpec, rows: list[dict[str, Any]], task: Task) -> dict[str, Any]:
    """The row of the epoch whose weights are the run's outcome."""
    if train.select == "last":
        return rows[-1]
    if train.select == "best_loss":
        return min(rows, key=lambda row: row["val_loss"])
    best = max if task.maximize else min
    return best(rows, key=lambda row: row[f"val_{task.metric}"])


def _stops(train: TrainSpec, rows: list[dict[str, Any]]) -> bool:
    """Whether training ends with the last of these rows, before its last epoch."""
    window = train.stop_window
    if window is None or len(rows) <= max(train.epochs // 2, window):
        return False
    losses = [row["val_loss"] for row in rows[-window - 1 :]]
    return losses[-1] > sum(losses[:-1]) / window


def _out_of_patience(train: TrainSpec, rows: list[dict[str, Any]], task: Task) -> bool:
    """Whether the last ``train.patience`` of these rows are all no better than one before them."""
    if train.patience is None or not rows:
        return False
    return rows[-1]["epoch"] - _kept_row(train, rows, task)["epoch"] >= train.patience


def _check_batches(module: Trainable, train: TrainSpec, world: int) -> None:
    batch = train.batch_size // train.accumulate
    if module.steps_per_epoch < 1:
        raise CallError("an epoch has fewer training batches than train.accumulate; lower it or train.batch_size")
    if batch % world:
        raise CallError(f"a batch of {batch} (train.batch_size / train.accumulate) cannot be cut for {world} processes")
    if (train.mixup or train.cutmix) and batch // world % 2:
        raise CallError(f"mixup and CutMix pair the samples of a batch: {batch // world} samples are an odd number")


def _epochs_done(run: RunDirectory) -> int:
    return load_checkpoint(run.checkpoint)["epochs_done"] if run.checkpoint.is_file() else 0


def _result(run: RunDirectory, recipe: Recipe, task: Task, name: str, trained: int) -> RunResult:
    result, rows = run.result(), run.rows()
    return RunResult(
        path=run.path,
        identity=name,
        metric=task.metric,
        score=result["score"],
        rows=rows,
        seconds=result["seconds"],
        trained=trained,
        unmet=_unmet(recipe.expect, _kept_row(recipe.train, rows, task), task),
    )


def _unmet(expect: Mapping[str, float], row: dict[str, Any], task: Task) -> list[str]:
    lines = []
    for name, bound in expect.items():
        at_least = task.maximize and name.endswith(task.metric)
        if (row[name] < bound) if at_least else (row[name] > bound):
            lines.append(f"{name} is {row[name]:.4g}, {'at least' if at_least else 'at most'} {bound:g} was expected")
    return lines


# --- Lightning


class _WholeCheckpoints(CheckpointIO):
    """Lightning's reading and writing of checkpoints, whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        save_checkpoint(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class _FromEpoch(LightningDataModule):
    """A task's data whose training order begins at an epoch: loader workers fetch ahead before Lightning tells the
    sampler which epoch it is."""

    def __init__(self, data: TaskData, epoch: int) -> None:
        super().__init__()
        self.data = data
        self.epoch = epoch

    def train_dataloader(self) -> Any:
        self.data.trainer = self.trainer
        loader = self.data.train_dataloader()
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(self.epoch)
        return loader

    def val_dataloader(self) -> Any:
        self.data.trainer = self.trainer
        return self.data.val_dataloader()


class _Epochs(Callback):
    """Reports steps; at an epoch's end says whether it was the last, and every so often appends the rows, then replaces
    the checkpoint."""

    def __init__(
        self,
        run: RunDirectory,
        task: Task,
        train: TrainSpec,
        done: int,
        progress: Callable[[FitProgress], None] | None,
    ) -> None:
        self.run = run
        self.task = task
        self.metric = task.metric
        self.train = train
        self.progress = progress
        self.rows = run.rows()[:done]
        self.written = done
        self.kept_weights: dict[str, Tensor] | None = None
        self.started = 0.0

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.received_sigterm:
            raise SystemExit(128 + signal.SIGTERM)
        if self.progress is not None:
            self._report(trainer, module, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "train_loss": module.mean_epoch_loss(),
            "val_loss": _decimal(module.validation_loss.compute()),
            f"val_{self.metric}": _decimal(module.metric.compute()),
            "lr": module.learning_rate,
            "seconds": round(time.perf_counter() - self.started, 4),
        }
        self.rows.append(row)
        if self.train.select != "last" and _kept_row(self.train, self.rows, self.task) is row:
            self.kept_weights = {name: value.detach().clone() for name, value in module.kept.state_dict().items()}
        stops = _stops(self.train, self.rows) or _out_of_patience(self.train, self.rows, self.task)
        if stops or row["epoch"] == self.train.epochs or row["epoch"] % self.train.checkpoint_epochs == 0:
            if trainer.is_global_zero:
                self.run.append(*self.rows[self.written :])
            self.written = len(self.rows)
            trainer.save_checkpoint(self.run.checkpoint)
        if stops:
            trainer.should_stop = True
        if self.progress is not None:
            self._report(trainer, module, int(trainer.num_training_batches))

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["epochs_done"] = trainer.current_epoch + 1
        if self.kept_weights is not None:
            checkpoint["kept_weights"] = self.kept_weights

    def on_load_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self.kept_weights = checkpoint.get("kept_weights")

    def _report(self, trainer: Trainer, module: Any, step: int) -> None:
        assert self.progress is not None
        self.progress(
            FitProgress(
                epoch=trainer.current_epoch + 1,
                epochs=int(trainer.max_epochs or 0),
                step=step,
                steps=int(trainer.num_training_batches),
                loss=module.last_loss,
                score=self.rows[-1][f"val_{self.metric}"] if self.rows else None,
            )
        )


def _decimal(value: Tensor) -> float:
    """The shortest decimal number that a float32 stands for: 0.9, not 0.8999999761581421."""
    return float(str(numpy.float32(value.item())))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM end training as they end any program: Lightning turns the first into an exit, and leaves the
    process deaf to the next one."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stopped:
        if isinstance(stopped.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise SystemExit(stopped.code or 128 + signal.SIGTERM) from None
    except MisconfigurationException as error:
        raise CallError(str(error)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's hints, hardware lines and warnings from the user: none of them is about their work."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            warnings.filterwarnings("ignore", module=r"torch\.")
            warnings.filterwarnings("ignore", message=".*deterministic.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic algorithms wherever PyTorch has them."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    fills = memory.fill_uninitialized_memory
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        memory.fill_uninitialized_memory = fills
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


# --- evaluate


def evaluate(run: str | Path, split: Literal["val", "test"], *, device: str = "auto", source: Any = None) -> Evaluation:
    """Evaluate a finished run on one split, once: the outcome is kept as ``<split>.safetensors`` and read from then on.

    Args:
        run: the run directory.
        split: ``val`` or ``test``.
        device: as in :func:`fit`.
        source: as in :func:`fit`.

    Raises:
        CallError: not a finished run, or its data are no longer what it was trained on.
    """
    if split not in ("val", "test"):
        raise CallError(f"split must be val or test, got {split!r}")
    info = read_info(run)
    kept = info.path / f"{split}.safetensors"
    if not kept.is_file():
        with RunDirectory(run).locked():
            _evaluate(info.path, split, resolve_device(device), source, kept)
    try:
        with safetensors.safe_open(kept, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("evaluation", "{}"))
            tensors = {name: file.get_tensor(name) for name in ("per_sample", "predictions", "targets")}
    except (safetensors.SafetensorError, OSError) as error:
        raise CallError(f"{kept} is damaged ({error}); delete it to evaluate again") from error
    if facts.get("identity") != info.identity:
        raise CallError(f"{kept} belongs to another run; delete it to evaluate again")
    return Evaluation(score=facts["score"], classes=info.classes, **tensors)


def _evaluate(path: Path, split: str, device: torch.device, source: Any, kept: Path) -> None:
    model, info = load_run(path)
    if info.recipe.method is not None and not finishes(info.recipe.method.name):
        raise CallError(f"{path} is a pre-training run, which predicts nothing: train from it (model.weights={path})")
    task = get_task(info.recipe.task)
    with _quiet(), isolate_rng(), _deterministic(), torch.inference_mode():
        data = task.open_data(info.recipe.data, info.recipe.train, info.recipe.seed, source)
        if data.fingerprint != info.data_fingerprint:
            raise CallError(f"the data of {path} ({info.recipe.data.source}) changed since it was trained")
        data = task.scored_on(data, split)
        module = task.module(model, info.recipe, data).to(device).eval()
        pairs = []
        for index, batch in enumerate(data.val_dataloader() if split == "val" else data.test_dataloader()):
            outputs, targets = module.predict_step(module.transfer_batch_to_device(batch, device, 0), index)
            pairs.append((outputs.cpu(), targets.cpu()))
    outputs, targets = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    per_sample = task.per_sample_score(outputs, targets)
    content = {
        "per_sample": per_sample.contiguous(),
        "predictions": task.predictions(outputs).contiguous(),
        "targets": targets.contiguous(),
    }
    facts = {"identity": info.identity, "split": split, "score": per_sample.double().mean().item()}
    with writing(kept) as file:
        # one entry: safetensors writes several in a random order, and equal evaluations are to be equal files
        file.write(safetensors.torch.save(content, metadata={"evaluation": json.dumps(facts)}))
