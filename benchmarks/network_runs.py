"""What `benchmark forward` and `embed` share: options, random bases, and the demand that both sides agree."""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarking import HERE, demand_room, machine, measure, say
from networks import FASTA, NETWORKS, SHOWN
from option_types import existing, positive

DTYPES = ("float32", "bfloat16", "float16")
# what a difference between two float32 sides may be, in units of their root mean square, and how far a narrower type
# may turn a vector; a GPU adds up in another order for each shape
LARGEST_DIFFERENCE, LOWEST_COSINE = {"cpu": 1e-5, "cuda": 1e-4}, 0.999
_SMALLEST_ROOM = 1e8


def add_network_options(command: ArgumentParser, sizes: list[str], sequences: int) -> None:
    """Add the options that say what is run on what.

    Args:
        command: the command.
        sizes: those that are run by default.
        sequences: how many are read by default.
    """
    listed = f"{', '.join(SHOWN)}; default: {' '.join(sizes)}"
    command.add_argument("--size", nargs="+", choices=NETWORKS, metavar="SIZE", default=sizes, help=listed)
    command.add_argument("--layers", type=positive, metavar="N", help="default: all; of 640M one cycle of dilations, 8")
    count = "the first ones of at most 1022 residues; default: %(default)s"
    command.add_argument("--sequences", type=positive, default=sequences, metavar="N", help=count)
    fasta = "default: sequences of UniProt that the package ships"
    command.add_argument("--fasta", type=existing, default=FASTA, metavar="FILE", help=fasta)
    dtypes = "of our side; default: float32 bfloat16"
    command.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES[:2]), help=dtypes)
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")


@contextmanager
def random_base(size: str, options: Namespace, copies: int) -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    """Make a base with random weights in a folder that is removed at the end.

    Args:
        size: key of `NETWORKS`.
        options: for `work` and `layers`.
        copies: how many more files of its size shall have room.

    Returns:
        The base, the folder, and what `random_base.py` prints.
    """
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hf-perturb-benchmark-", dir=options.work) as name:
        folder = Path(name)
        demand_room(folder, max(_SMALLEST_ROOM, 4.4 * (copies + 1) * NETWORKS[size].parameters))
        say(f"making a base of {size} with random weights in {folder}")
        layers = ["--layers", str(options.layers)] if options.layers else []
        made = measure(script("random_base.py", size, folder / "base", *layers))
        yield folder / "base", folder, json.loads(made.printed)


def script(name: str, *arguments: object) -> list[str]:
    """Return the command that runs one of these scripts."""
    return [sys.executable, str(HERE / name), *map(str, arguments)]


def export(base: Path, to: str, out: Path) -> Path:
    """Write a base in a peer's format."""
    measure([sys.executable, "-m", "hf_perturb", "convert", "--to", to, str(base), str(out)])
    return out


def demand_agreement(
    side: str, peer: str, found: dict[str, dict[str, float]], exact: bool, device: str = "cpu"
) -> None:
    """Print how far a side's results are from its peer's.

    Args:
        side: its name.
        peer: the other's.
        found: what `agreement.differences` returned, by what was compared.
        exact: whether both are float32.
        device: where they ran.

    Raises:
        SystemExit: if they are too far apart to be the same results.
    """
    for what, values in found.items():
        good = values["difference"] <= LARGEST_DIFFERENCE[device] if exact else values["cosine"] >= LOWEST_COSINE
        apart = f"largest difference {values['difference']:.1e} of {values['scale']:.3g}, the root mean square"
        said = f"{side} beside {peer}, {what}: {apart if exact else 'lowest cosine {:.6f}'.format(values['cosine'])}"
        if not good:
            allowed = f"at most {LARGEST_DIFFERENCE[device]:.0e}" if exact else f"at least {LOWEST_COSINE}"
            raise SystemExit(f"benchmark: {said}; allowed: {allowed}. They differ, so nothing is reported")
        print(said, flush=True)


def header(options: Namespace, records: list[tuple[str, str]]) -> dict[str, Any]:
    """Return what the JSON says of the machine and the sequences."""
    lengths = [len(sequence) for _, sequence in records]
    return {
        "machine": machine(),
        "device": options.device,
        "repeat": options.repeat,
        "fasta": options.fasta.name,
        "sequences": len(lengths),
        "residues": sum(lengths),
        "shortest": min(lengths),
        "longest": max(lengths),
        "networks": [],
    }


def print_title(facts: dict[str, Any], data: dict[str, Any], how: str) -> None:
    """Print what is measured."""
    what = f"{facts['network']} {facts['size']}, {facts['layers']} layers of {facts['width']}"
    lengths = f"{data['sequences']} sequences of {data['shortest']} to {data['longest']} residues"
    print(f"\n{what}; {lengths}{how}; {data['device']}; best (median) of {data['repeat']}", flush=True)
