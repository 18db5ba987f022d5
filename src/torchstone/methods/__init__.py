"""Ways to train a network before, or other than, learning from labels. A method takes a network and is its training.

* :class:`torchstone.methods.method.Method` - what a method is
* :func:`torchstone.methods.registry.build_method` - a method around a network, by name
"""
