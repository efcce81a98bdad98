"""The networks, as Transformers models whose weights can be perturbed.

The modules here travel to the Hub beside the weights, so they are flat and import nothing of this package but
their siblings; `record.py` reaches `hf_perturb.perturbation` through the one guarded import.
"""
