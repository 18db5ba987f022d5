"""Graph networks, with PyTorch Geometric's interface: ``forward(x, edge_index, ...)``."""
