"""Tune mode: our objects for each recorded call of the authors' code and of PyTorch's pass by the same authors."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.transforms import tune_mode
from torchstone.verification import Case, load_state


class _Net(nn.Module):
    """The recorded network: its third convolution is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(8)
        self.c2 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.b2 = nn.BatchNorm2d(8)
        self.c3 = nn.Conv2d(8, 8, 1, bias=False)
        self.b3 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))))
        r = self.c3(x)
        return self.fc(F.relu(self.b3(r) + r).mean((2, 3)))


def run(case: Case) -> dict[str, Tensor]:
    return _train(case) if "SGD" in case.call else _block(case)


def _block(case: Case) -> dict[str, Tensor]:
    parts = {name: getattr(nn, kind)(*_plain(told), **told[-1]) for name, (kind, *told) in case.kwargs.items()}
    plain = load_state(nn.Sequential(OrderedDict(conv=parts["conv"], bn=parts["bn"])), case).eval()
    x = case.inputs["x"].requires_grad_()
    block = tune_mode.transform(plain, x).model
    y = block(x)
    y.backward(case.inputs["gy"])
    weight, bias = tune_mode.fold(plain.conv, plain.bn)
    gradients = {f"grad_{name}": parameter.grad for name, parameter in block.named_parameters()}
    return {"y": y, "grad_x": x.grad, **gradients, "deploy_weight": weight, "deploy_bias": bias}


def _plain(told: list) -> list:
    """Positional arguments: sizes may be given for each axis."""
    return [tuple(value) if isinstance(value, list) else value for value in told[:-1]]


def _train(case: Case) -> dict[str, Tensor]:
    net = load_state(_Net(), case).train()
    x, label = case.inputs["x"], case.inputs["label"]
    result = tune_mode.transform(net, x)
    norms = {name: module for name, module in result.model.named_children() if name.startswith("b")}
    told = case.mode.partition("eval")[0]  # "all BN ", or the names of those in eval mode
    for name, norm in norms.items():
        norm.train(not ("all" in told or name in told))
    optimizer = torch.optim.SGD(result.model.parameters(), lr=0.1, momentum=0.9)
    outputs = {}
    for step in range(2):
        logits = result.model(x)
        loss = F.cross_entropy(logits, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        outputs |= {f"logits{step}": logits, f"loss{step}": loss}
    after = {f"after/{name}": value for name, value in result.model.state_dict().items()}
    counts = {"num_fused": result.report.measured["pairs"], "num_bn_left": result.report.measured["norms left"]}
    return {**outputs, **after, **{name: torch.tensor(value) for name, value in counts.items()}}
