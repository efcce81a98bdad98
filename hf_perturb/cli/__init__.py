"""The command line."""

from hf_perturb.cli.main import main as main, script as script
