"""How the tensors of a variant come from those of its base, without a model in memory."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.networks.layouts import language_head, layout, tied
from hf_perturb.perturbation import Perturbation, make_plan, select
from hf_perturb.perturbation.kernels import Shape
from hf_perturb.perturbation.plan import Plan
from hf_perturb.variants.sources import Sources
from hf_perturb.variants.stream import Output, Sink, Target


@dataclass(frozen=True)
class Blueprint:
    """A variant that is still to be made.

    Args:
        config: of the variant; its head is untied if the perturbation unties it.
        outputs: its tensors, in the order of the network.
        shapes: type and shape of each.
        plan: the steps.
    """

    config: Any
    outputs: dict[str, Output]
    shapes: dict[str, tuple[torch.dtype, Shape]]
    plan: Plan

    def target(self, sink: Sink) -> Target:
        """Return a target with a generator of its own, at its beginning."""
        return Target(self.outputs, sink, self.plan.generator())


def make_blueprint(base: Checkpoint, asked: Perturbation) -> Blueprint:
    """Say how a variant of a base is made; does what `perturb` does to a model in memory.

    Args:
        base: a checked checkpoint that is not perturbed.
        asked: what to do.

    Raises:
        PerturbationError: if the perturbation does not fit the network.
    """
    config = copy.deepcopy(base.config)
    family, head, ties = config.model_type, language_head(config), tied(config)
    drawn = document_shapes(base, asked.rules)
    plan = make_plan(family, drawn, asked, head)
    steps = {step.name: step for step in plan.steps}
    if asked.rules == "documented" and ties.keys() & select(family, [*drawn, *head], asked):
        # the document keeps the embedding and perturbs the head, which start from the same values
        config.tie_word_embeddings, separate = False, ties
    else:
        separate = {}
    outputs = {
        name: Output(separate.get(name, name), steps.get(name))
        for name in layout(base.config, base.architecture)
        if name in separate or name not in ties
    }
    for name, source in ties.items():
        if name in steps and not separate:
            # the study drew the head while tied
            outputs[source] = Output(source, steps[name])
    dtypes = base.dtypes()
    shapes = {name: (dtypes[made.source], tuple(base.tensors[made.source].shape)) for name, made in outputs.items()}
    return Blueprint(config, outputs, shapes, plan)


def document_shapes(base: Checkpoint, rules: str) -> dict[str, Shape]:
    """Return the shapes that a plan is made of, in the order of the original class.

    Args:
        base: a checked checkpoint.
        rules: under `"published"`, a tied head counts even where the model at hand has none: the study drew it.
    """
    shapes = layout(base.config, base.architecture)
    if rules == "published":
        for name, source in tied(base.config).items():
            shapes.setdefault(name, shapes[source])
    return shapes


def sources_of(base: Checkpoint) -> Sources:
    """Return the tensors of a base, in the order in which steps that share a generator have to come."""
    ties, order = tied(base.config), dict[str, None]()
    for name in document_shapes(base, "published"):
        source = ties.get(name, name)
        # a tied tensor is drawn when its last name comes
        order.pop(source, None)
        order[source] = None
    return Sources({name: base.tensors[name] for name in order}, base.dtypes())
