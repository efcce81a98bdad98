"""How the tensors of a variant come from those of its base, without a model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.recipe import with_versions
from hf_perturb.checkpoints.shapes import Shape
from hf_perturb.perturbation import Perturbation, Plan, Step, make_plan, select


@dataclass(frozen=True)
class Output:
    """A tensor to write.

    Args:
        source: name of the tensor that it comes from.
        step: what is done to it, `None` to keep it.
        held: names of the tensors of the network that it is of, where these are others.
    """

    source: str
    step: Step | None = None
    held: tuple[str, ...] = ()


@dataclass(frozen=True)
class Blueprint:
    """A variant that is still to be made.

    Args:
        network: of the variant; its head is untied if the perturbation unties it.
        asked: the perturbation.
        steps: what is done to every tensor of the network, `None` for one that is kept.
        outputs: what is stored of these.
        shapes: type (`F32`) and shape of each.
        plan: the steps.
    """

    network: Network
    asked: Perturbation
    steps: dict[str, Step | None]
    outputs: dict[str, Output]
    shapes: dict[str, tuple[str, Shape]]
    plan: Plan


def make_blueprint(base: Checkpoint, asked: Perturbation) -> Blueprint:
    """Say how a variant is made of a checked base; does what `perturb` does to a model in memory.

    Raises:
        PerturbationError: if the perturbation does not fit the network.
    """
    network, ties = base.network, base.network.tied
    asked = with_versions(asked, network)
    chosen = select(network.table(asked.rules), [*network.shapes, *network.language_head], asked)
    if asked.rules == "documented" and {*ties, *ties.values()} & chosen:
        # the document keeps the embedding and perturbs the head, which start from the same values
        network = network.with_sizes(tie_word_embeddings=False)
    plan = plan_for(network, asked)
    steps = steps_of(network, plan)
    outputs = {name: Output(ties.get(name, name), step) for name, step in steps.items()}
    if isinstance(network, AnyNetwork):
        outputs = _restacked(network, outputs, base)
    dtypes, stored = base.dtypes(), base.shapes
    shapes = {name: (dtypes[made.source], stored[made.source]) for name, made in outputs.items()}
    return Blueprint(network, asked, steps, outputs, shapes, plan)


def _restacked(network: AnyNetwork, outputs: Mapping[str, Output], base: Checkpoint) -> dict[str, Output]:
    """Return outputs with what is stored of tensors that are stored one by one and held as others, in their place."""
    made = dict(outputs)
    for stack in network.stacks:
        held = {own: stack.skeleton.stored(own) for own in stack.shapes}
        steps = {own: made.pop(name).step for own, name in held.items()}
        parts = stack.perturbed(steps, base.tensors) if any(steps.values()) else None
        for name in stack.patterns:
            step = None
            if parts is not None:
                step = Step(name, base.tensors[name].shape, "part", (), None, drawn=partial(parts.part, name))
            made[name] = Output(name, step, tuple(held.values()))
    return made


def plan_for(network: Network, asked: Perturbation) -> Plan:
    """Plan a perturbation of a network whose head is tied or not as in the variant."""
    rules = asked.rules or network.rules
    return make_plan(network.table(rules), document_shapes(network, rules), asked, network.whole(rules))


def steps_of(network: Network, plan: Plan) -> dict[str, Step | None]:
    """Return what is done to every tensor that a variant stores, `None` for one that is kept.

    The step bears the tensor's name, but for a tensor that is tied to the head: the study drew it as the head.
    """
    ties, steps = network.tied, {step.name: step for step in plan.steps}
    stored = {name: steps.get(name) for name in network.shapes if name not in ties}
    return stored | {source: steps[name] for name, source in ties.items() if name in steps}


def document_shapes(network: Network, rules: str) -> dict[str, Shape]:
    """Return the shapes that a plan is made of, in the order of the original class.

    Under the rules `"published"`, a tied head counts even where the model at hand has none: the study drew it.
    """
    tied = network.tied if rules == "published" else {}
    return network.shapes | {name: network.shapes[source] for name, source in tied.items()}
