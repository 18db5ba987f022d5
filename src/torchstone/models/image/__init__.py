"""Image backbones and classifiers, with timm's interface."""
