"""`python -m hf_perturb`."""

from hf_perturb.cli.main import script

script()
