"""What a perturbation is: its specification, the rules, and the plan that they give. `published` alone needs torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
