"""Where networks and checkpoints meet: loading and perturbing models, wrapping originals, and the Auto classes.

The model files of `hf_perturb.networks` reach these names through the one guarded hook in their `record.py`. None of
them is called `save`: nnsight gives every object a method of that name, which would be found instead.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
