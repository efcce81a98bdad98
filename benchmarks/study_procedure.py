"""The peer of `scripts/benchmark`: the study's procedure as a whole process, from a weights file to a weights file.

It builds the original class as the original loader does, loads the weights, perturbs them in memory as the study's code
did (`tests/parity/study.py`), and saves them. Nothing of hf_perturb or Transformers is imported.

  python benchmarks/study_procedure.py resample my-base/model.safetensors out.safetensors
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from original_networks import load_original
from safetensors.torch import save_model

STUDY = Path(__file__).parent.parent / "tests" / "parity" / "study.py"


def study(family: str) -> ModuleType:
    """Import the study's procedure from the tests."""
    if family != "carp":
        # it asks whether a module is a CARP; sequence_models would cost the peer half a second for nothing
        sys.modules["sequence_models.pretrained"] = SimpleNamespace(CARP=type(None))  # type: ignore[assignment]
    spec = importlib.util.spec_from_file_location("study", STUDY)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def main() -> None:
    """Parse the command line and run the procedure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=("reinit", "resample"))
    parser.add_argument("base", type=Path, help="model.safetensors of a base, its config.json beside it")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s, the study's first")
    options = parser.parse_args()
    module, config = load_original(options.base.parent)
    procedure = getattr(study(config["model_type"]), options.method)
    procedure(module, options.seed)
    save_model(module, str(options.out))


if __name__ == "__main__":
    main()
