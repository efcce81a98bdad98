"""What a perturbation is: its specification, the rules, and the plan that they give. Needs torch alone."""

from hf_perturb.perturbation.digest import digest_of
from hf_perturb.perturbation.plan import Plan, Step, apply_plan, check_values, make_plan, selection
from hf_perturb.perturbation.rules import FAMILIES, default_axis
from hf_perturb.perturbation.spec import Base, Perturbation

__all__ = [
    "FAMILIES",
    "Base",
    "Perturbation",
    "Plan",
    "Step",
    "apply_plan",
    "check_values",
    "default_axis",
    "digest_of",
    "make_plan",
    "selection",
]
