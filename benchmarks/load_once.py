"""Load a model and print the seconds that it took; what is needed is imported before the clock starts.

Two figures: of `from_pretrained` alone, and until every weight was read once too, because it may only map the file.

python benchmarks/load_once.py hf_perturb my-control
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from pathlib import Path


def main() -> None:
    """Parse the command line, load and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", choices=("hf_perturb", "transformers"), help="whose class to load with")
    parser.add_argument("folder", type=Path, help="a model; its config.json names the class")
    options = parser.parse_args()
    [architecture] = json.loads((options.folder / "config.json").read_text(encoding="utf-8"))["architectures"]
    model_class = getattr(importlib.import_module(options.package), architecture)
    begin = time.perf_counter()
    model = model_class.from_pretrained(options.folder)
    loaded = time.perf_counter() - begin
    for tensor in model.state_dict().values():
        tensor.sum()
    print(json.dumps({"load": loaded, "load_and_read": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
