"""A method on one graph that finishes the task: a network imitates the probabilities of a teacher on all nodes."""

from torch import Tensor
from torch.nn import functional as F

from torchstone.methods.method import Method

FINISHES = True


class Imitation(Method):
    def __init__(self, network, teacher):
        super().__init__(network)
        object.__setattr__(self, "teacher", teacher)  # not a part of the method's state

    def prepare(self, data):
        graph = data.graph
        soft = self.teacher(graph.x, graph.edge_index).detach().softmax(1)
        for name, tensor in (("x", graph.x), ("edge_index", graph.edge_index), ("y", graph.y), ("soft", soft)):
            self.register_buffer(name, tensor, persistent=False)

    def inputs(self, batch: Tensor) -> Tensor:
        return self.x[batch]

    def outputs(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(self.x, self.edge_index)[batch], self.y[batch]

    def evaluation_loss(self, batch: Tensor) -> Tensor:
        return F.cross_entropy(self.network(self.x, self.edge_index), self.soft, reduction="none")[batch]

    def loss(self, batch: Tensor) -> Tensor:
        return F.cross_entropy(self.network(self.x, self.edge_index), self.soft)


def build(model, *, teacher):
    return Imitation(model, teacher)
