"""Where networks and checkpoints meet: loading and perturbing models, wrapping originals, and the Auto classes.

The model files of `hf_perturb.networks` reach these names through the one guarded hook in their `record.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
