"""`python -m hf_perturb`."""

from hf_perturb.cli import script

script()
