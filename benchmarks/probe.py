"""Is it due to what the model learned? Linear probes of a base and its controls, layer by layer.

Two tasks on the 200 sequences that the demo base has not seen: whether a protein is of a bacterium or a eukaryote, and,
as a sanity task, which share of its residues is hydrophobic, which any network must tell that passes its input on.

scripts/probe --plot probe.svg
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

SEEDS = (42, 0, 12345)  # the study's


def main() -> None:
    """Parse the command line, embed, probe, print and draw."""
    parser = argparse.ArgumentParser(
        prog="probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="demo", help="any base; default: the demo base")
    parser.add_argument("--layers", default="all", help="as for hf-perturb embed; default: all")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=SEEDS, help="of the controls; default: the study's three"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the embeddings; default: they are removed")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw scores against layers (.svg, .pdf, .png)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores as data too")
    options = parser.parse_args()
    # only now, so that help needs nothing that is to be installed
    from probe_plot import draw
    from probing import embedded, probe_all, summary
    from threadpoolctl import threadpool_limits

    from hf_perturb.cli.output import print_table

    try:
        with tempfile.TemporaryDirectory() as scratch:
            folders = embedded(options.base, options.seeds, options.layers, options.work or Path(scratch))
            with threadpool_limits(1):  # problems this small are slower on more
                rows = probe_all(folders)
    except (OSError, ValueError) as error:
        raise SystemExit(f"probe: {error}") from error
    print_table(summary(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
