"""Sequence networks: ``forward(x)`` maps (B, L, in_channels) or tokens (B, L) to logits (B, num_classes)."""
