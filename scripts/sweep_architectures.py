"""Draw every tensor of a small network of every architecture of Transformers, and say what cannot be drawn.

  python scripts/sweep_architectures.py               all of them, in some minutes: the section for docs/models.md
  python scripts/sweep_architectures.py bert clip     some of them
  python scripts/sweep_architectures.py --write       and put it there

One tensor of each pattern of names is drawn, in every class that the Auto classes have for the architecture; those of
the first class are held against an ordinary initialisation, constants by value and the others by distribution.
"""

from __future__ import annotations

import argparse
import inspect
import re
import signal
import sys
import warnings
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import transformers
from scipy.stats import ks_2samp
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_perturb.checkpoints.skeleton import Skeleton
from hf_perturb.errors import PerturbationError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- architectures: written by scripts/sweep_architectures.py -->", "<!-- end of architectures -->"
# sizes that configurations go by, and what they become
SMALL = {
    r"(num_.*|n_|.*_)layers?|depth|.*_depth|(num|n)_blocks": 2,
    r"(.*_)?head_dim|d_kv|d_head|(attention_)?head_size": 16,
    r".*(hidden|embedding|feature)_size|.*(embed|hidden|emb|model|projection)_dim|(.*_)?(d_model|width|dim)|n_embd": 64,
    r".*intermediate_size|.*ffn_(.*_)?(dim|size)|d_ff|d_inner|n_inner|dim_feedforward|word_embed_proj_dim": 64,
    r"(num_key_value|n_kv|num_kv)_heads": 2,
    r".*(num|n|attention)_(.*_)?heads": 4,
    r"(moe_)?num_(local_)?experts|n_routed_experts": 4,
    r"num_experts_per_tok(en)?|moe_topk|moe_k": 2,
    r".*_group_vocab": 1000,
}
# what some have no default for
GIVEN: dict[str, Any] = {"head_dim": 16, "prediction_length": 8, "vocab_size": 64, "num_key_value_heads": 2}
GIVEN["vocabulary_map"] = {}
SECONDS, LARGEST, WIDEST = 60, 2**25, 1e8  # for an architecture; entries of a tensor, and of a network
MANY = 20000  # entries of a tensor that are compared


class TooLong(BaseException):
    """An architecture takes longer than it may."""


@dataclass
class Found:
    """What became of an architecture: why it could not be built, or what of it cannot be drawn."""

    name: str
    unbuilt: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    constructed: set[str] = field(default_factory=set)
    unlike: set[str] = field(default_factory=set)
    large: set[str] = field(default_factory=set)
    patterns: int = 0
    classes: int = 0
    compared: int = 0


def small_sizes(config: type[PreTrainedConfig], only: str = "") -> dict[str, Any]:
    """Return keywords that make a configuration small, and those that are configurations themselves."""
    sizes: dict[str, Any] = {}
    for name, parameter in inspect.signature(config.__init__).parameters.items():
        value = parameter.default
        if value is None and name in GIVEN:
            sizes[name] = GIVEN[name]
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((size for glob, size in SMALL.items() if re.fullmatch(glob, name) and only in glob), value)
            sizes.update({name: size} if size < value else {})
    with suppress(Exception):
        whole = config()
        parts = {name: getattr(whole, name) for name in getattr(config, "sub_configs", None) or {}}
        kinds = {name: type(part) for name, part in parts.items() if part is not None}
        sizes.update({name: {"model_type": kind.model_type, **small_sizes(kind, only)} for name, kind in kinds.items()})
    return sizes


def classes_of(config: type[PreTrainedConfig]) -> list[type[PreTrainedModel]]:
    """Return the classes that the Auto classes have for a configuration, the trunk first."""
    mappings = [modeling_auto.MODEL_MAPPING, *vars(modeling_auto).values()]
    found: dict[type[PreTrainedModel], None] = {}
    for mapping in mappings:
        if isinstance(mapping, type(modeling_auto.MODEL_MAPPING)) and config in mapping:
            classes = mapping[config]
            found.update(dict.fromkeys(classes if isinstance(classes, tuple) else (classes,)))
    return list(found)


def pattern_of(name: str) -> str:
    """Return the name of a tensor without numbers of layers."""
    return re.sub(r"\b\d+\b", "*", name)


def built(name: str) -> tuple[PreTrainedConfig, list[Skeleton]]:
    """Return a small configuration of an architecture, and the skeletons of its classes that it is enough for.

    Raises:
        Exception: the last, if the trunk cannot be built, whatever the sizes.
    """
    problem: Exception | None = None
    for sizes in (small_sizes(CONFIG_MAPPING[name]), small_sizes(CONFIG_MAPPING[name], "layers"), {}):
        try:
            config = CONFIG_MAPPING[name](**sizes)
            classes = classes_of(type(config))
            skeletons = [Skeleton.build(each, config) for each in classes[:1]]
        except Exception as error:
            problem = error
            continue
        for each in classes[1:]:
            with suppress(Exception):
                skeletons.append(Skeleton.build(each, config))
        return config, skeletons
    assert problem is not None
    raise problem


def draw(skeleton: Skeleton, found: Found, seen: set[str]) -> None:
    """Draw a tensor of each pattern that no class before had."""
    for name, shape in skeleton.shapes.items():
        pattern = pattern_of(name)
        if name not in skeleton.parameters or pattern in seen:
            continue
        if np.prod(shape, dtype=float) > LARGEST:
            found.large.add(pattern)
            continue
        seen.add(pattern)
        try:
            if ".__init__" in skeleton.told(name).source:
                found.constructed.add(pattern)
        except PerturbationError as error:
            found.refused[pattern] = str(error)


def compare(skeleton: Skeleton, config: PreTrainedConfig, found: Found) -> None:
    """Hold the draws against an ordinary initialisation."""
    if sum(np.prod(shape, dtype=float) for shape in skeleton.shapes.values()) > WIDEST:
        return
    torch.manual_seed(0)
    ordinary = type(skeleton.model)(config).state_dict()
    pools: dict[str, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for name in skeleton.parameters - skeleton.tied.keys():
        drawn, expected = pools[pattern_of(name)]
        if len(drawn) < 2 and pattern_of(name) not in found.refused:
            drawn.append(skeleton.draw(name, 1).ravel()[:MANY])
            expected.append(ordinary[skeleton.stored(name)].float().numpy().ravel()[:MANY])
    for pattern, pool in pools.items():
        drawn, expected = map(np.concatenate, pool) if pool[0] else (np.empty(0), np.empty(0))
        found.compared += drawn.size > 8
        alike = np.allclose(drawn, expected, rtol=1e-5, atol=1e-7)
        # of 20000 patterns none is that far by chance
        if not alike and drawn.size > 8 and ks_2samp(drawn, expected, method="asymp").pvalue < 1e-7:
            found.unlike.add(pattern)


def sweep(name: str) -> Found:
    """Return what becomes of an architecture."""
    found = Found(name)
    signal.alarm(SECONDS)
    try:
        config, skeletons = built(name)
        if not skeletons:
            found.unbuilt = "no class"
        found.classes, seen = len(skeletons), set[str]()
        for skeleton in skeletons:
            draw(skeleton, found, seen)
        found.patterns = len(seen)
        if skeletons:
            compare(skeletons[0], config, found)
    except TooLong:
        found.unbuilt = f"takes longer than {SECONDS} s"
    except Exception as error:
        found.unbuilt = f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        signal.alarm(0)
    return found


def section(every: list[Found]) -> str:
    """Return what docs/models.md says of the architectures."""
    parts = [each for each in every if each.unbuilt == "no class"]
    unbuilt = [each for each in every if each.unbuilt and each not in parts]
    others = [each for each in every if not each.unbuilt]
    odd = [each for each in others if each.refused or each.unlike]
    complete = [each for each in others if each not in odd]
    some = [each for each in complete if each.constructed]
    sums = {key: sum(getattr(each, key) for each in others) for key in ("classes", "patterns", "compared")}
    lines = [
        f"Of Transformers {transformers.__version__}, {len(others)} architectures were built small here, in"
        f" {sums['classes']} classes that the Auto classes have.",
        f"{len(complete)} of them are complete: reinit draws every parameter. {sums['patterns']} patterns of names",
        f"were drawn, and {sums['compared']} of the first classes held against an ordinary initialisation;"
        f" {sum(len(each.large) for each in others)} were too large here.",
        "",
        "| | | |",
        "| --- | --- | --- |",
        f"| complete | {len(complete) - len(some)} | {names(each for each in complete if not each.constructed)} |",
        f"| complete, some tensors as the constructor sets them | {len(some)} | {names(some)} |",
        *(f"| refused in part: {faults(each)} | | {names([each])} |" for each in odd),
        f"| not built here | {len(unbuilt)} | {', '.join(f'`{each.name}` ({reason(each)})' for each in unbuilt)} |",
        f"| parts of others, without an Auto class | {len(parts)} | |",
    ]
    return "\n".join(lines)


def names(every: Any) -> str:
    """Return the names of architectures as a list."""
    return ", ".join(f"`{each.name}`" for each in every)


def faults(found: Found) -> str:
    """Return what of an architecture is refused, or drawn otherwise than in an ordinary initialisation."""
    unlike = [f"`{pattern}` is drawn otherwise" for pattern in sorted(found.unlike)]
    return ", ".join([*(f"`{pattern}`" for pattern in sorted(found.refused)), *unlike])


def reason(found: Found) -> str:
    """Return in a few words why an architecture was not built."""
    library = re.search(r"requires the (\w+) library", found.unbuilt)
    return f"needs {library[1]}" if library else shorten(found.unbuilt, 60, placeholder=" ...").replace("|", "/")


def write(table: str) -> None:
    """Put the table into the page, between its markers."""
    before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{begin}\n\n{table}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def on_alarm(*_: object) -> None:
    """End an architecture that takes too long."""
    raise TooLong


def main() -> int:
    """Parse the command line, and sweep; exit 1 if something is drawn otherwise than ordinarily."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="model types, all without")
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{PAGE.name}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, on_alarm)
    found = []
    theirs = [name for name, config in CONFIG_MAPPING.items() if config.__module__.startswith("transformers.")]
    for name in options.names or theirs:
        found.append(sweep(name))
        said = found[-1].unbuilt or faults(found[-1]) or f"complete, {found[-1].patterns} patterns"
        print(f"{name}: {said}", file=sys.stderr)
    if options.write:
        write(section(found))
    else:
        print(section(found))
    return int(any(each.unlike for each in found))


if __name__ == "__main__":
    sys.exit(main())
