"""How the tensors of a variant come from those of its base, without a model in memory."""

from __future__ import annotations

from dataclasses import dataclass

from hf_perturb.checkpoints.checkpoint import Checkpoint
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import Shape
from hf_perturb.perturbation import Perturbation, Plan, Step, make_plan, select


@dataclass(frozen=True)
class Output:
    """A tensor to write.

    Args:
        source: name of the tensor that it comes from.
        step: what is done to it, `None` to keep it.
    """

    source: str
    step: Step | None = None


@dataclass(frozen=True)
class Blueprint:
    """A variant that is still to be made.

    Args:
        network: of the variant; its head is untied if the perturbation unties it.
        asked: the perturbation.
        outputs: its tensors, in the order of the network.
        shapes: type (`F32`) and shape of each.
        plan: the steps.
    """

    network: Network
    asked: Perturbation
    outputs: dict[str, Output]
    shapes: dict[str, tuple[str, Shape]]
    plan: Plan


def make_blueprint(base: Checkpoint, asked: Perturbation) -> Blueprint:
    """Say how a variant of a base is made; does what `perturb` does to a model in memory.

    Args:
        base: a checked checkpoint that is not perturbed.
        asked: what to do.

    Raises:
        PerturbationError: if the perturbation does not fit the network.
    """
    network, ties = base.network, base.network.tied
    drawn = document_shapes(network, asked.rules)
    plan = make_plan(network.family, drawn, asked, network.language_head)
    steps = {step.name: step for step in plan.steps}
    chosen = select(network.family, [*drawn, *network.language_head], asked)
    separate: dict[str, str] = {}
    if asked.rules == "documented" and ties.keys() & chosen:
        # the document keeps the embedding and perturbs the head, which start from the same values
        network, separate = network.with_sizes(tie_word_embeddings=False), ties
    outputs = {
        name: Output(separate.get(name, name), steps.get(name))
        for name in base.network.shapes
        if name in separate or name not in ties
    }
    for name, source in ties.items():
        if name in steps and not separate:
            # the study drew the head while tied
            outputs[source] = Output(source, steps[name])
    dtypes = base.dtypes()
    shapes = {name: (dtypes[made.source], base.tensors[made.source].shape) for name, made in outputs.items()}
    return Blueprint(network, asked, outputs, shapes, plan)


def document_shapes(network: Network, rules: str) -> dict[str, Shape]:
    """Return the shapes that a plan is made of, in the order of the original class.

    Args:
        network: of the base.
        rules: under `"published"`, a tied head counts even where the model at hand has none: the study drew it.
    """
    shapes = dict(network.shapes)
    if rules == "published":
        for name, source in network.tied.items():
            shapes.setdefault(name, shapes[source])
    return shapes
