"""Run Transformers' common model tests on our classes and on its own ESM, and tell which fail for ours alone.

    python scripts/common_tests.py [--source transformers-5.24.0.tar.gz] [--whole] [NAME ...]

The tests come with the source distribution of the Transformers that is installed, which is fetched with pip unless it
is given. A NAME is part of what is run, all by default: `esm1.` is a network, `test_tied` are tests. Under a minute.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import subprocess
import sys
import tarfile
import tempfile
import unittest
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from transformers import testing_utils
from transformers.utils import logging

import hf_perturb

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
ALPHABET = {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": ("Esm", {**SIZES, **ALPHABET, "max_position_embeddings": 64}),
    "esm1": ("FairEsm", {**SIZES, "model_version": "ESM-1"}),
    "esm1b": ("FairEsm", {**SIZES, "model_version": "ESM-1b"}),
    "esm2": ("FairEsm", {**SIZES, "model_version": "ESM-2"}),
    "carp": ("Carp", {"hidden_size": 32, "num_hidden_layers": 2}),
}
# the class for each kind of task, by the name that the tests have for the list of all such classes
HEADS = {
    "MODEL_MAPPING_NAMES": "Model",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "ForMaskedLM",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "ForSequenceClassification",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "ForTokenClassification",
}
# what a distribution lacks: mixins that the tests of models extend, and values that those of configurations set
LACKING = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {"return_dict": False, "output_attentions": True}},
}


def fetched(folder: Path) -> Path:
    """Download the source distribution of the Transformers that is installed."""
    wanted = ["--no-deps", "--no-binary", ":all:", f"transformers=={transformers.__version__}"]
    subprocess.run([sys.executable, "-m", "pip", "download", *wanted, "--dest", folder], check=True)
    return next(folder.glob("transformers-*.tar.gz"))


def import_tests(source: Path, folder: Path) -> tuple[Any, Any]:
    """Unpack a source distribution; return the modules of its tests of models and of configurations."""
    with tarfile.open(source) as archive:
        members = [member for member in archive.getmembers() if "/tests/test_" in member.name]
        archive.extractall(folder, members, filter="data")
    tests = next(folder.glob("*/tests"))
    (tests / "__init__.py").touch()
    sys.path[:0] = [str(tests.parent), str(folder)]
    if importlib.util.find_spec("parameterized") is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--target", folder, "parameterized"], check=True)
    for name, content in LACKING.items():
        module = ModuleType(f"tests.{name}")
        vars(module).update(content)
        sys.modules[module.__name__] = module
    # the other process would look for the test in a file
    testing_utils.run_test_using_subprocess = lambda test: test
    models = import_module("tests.test_modeling_common")
    for mapping, head in HEADS.items():
        named = {"fair_esm": f"FairEsm{head}", "carp": f"Carp{head}"}
        setattr(models, mapping, {**getattr(models, mapping), **named})
    return models, import_module("tests.test_configuration_common")


class Network:
    """What the tests ask of a network: its sizes, a configuration, and a batch."""

    batch_size, seq_length, is_training = 4, 7, True
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, config_class: type, options: dict[str, Any]):
        self.config_class, self.options = config_class, options

    def get_config(self) -> Any:
        """Return a configuration of small sizes."""
        return self.config_class(**self.options)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return a configuration, and a batch of residues of which one sequence has padding."""
        ids = torch.randint(4, 24, (self.batch_size, self.seq_length))
        mask = torch.ones_like(ids)
        mask[1, -2:] = 0
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


def tests_of(name: str, models: Any, configurations: Any) -> type[unittest.TestCase]:
    """Make the test case of a network."""
    prefix, options = NETWORKS[name]
    home: Any = transformers if name == "stock" else hf_perturb
    config_class = getattr(home, f"{prefix}Config")
    common = [key for key in SIZES if key in options]

    def set_up(self: Any) -> None:
        transformers.set_seed(0)
        self.model_tester = Network(config_class, options)
        self.config_tester = configurations.ConfigTester(self, config_class, common_properties=common, **options)

    content = {
        "all_model_classes": tuple(getattr(home, prefix + head) for head in HEADS.values()),
        "has_attentions": name != "carp",
        "setUp": set_up,
        "test_config": lambda self: self.config_tester.run_common_tests(),
    }
    return type(name, (models.ModelTesterMixin, unittest.TestCase), content)


def run(case: type[unittest.TestCase], names: list[str]) -> tuple[int, dict[str, str]]:
    """Run tests that have one of these parts in their names; return how many ran, and what the failing ones say."""
    tests = unittest.defaultTestLoader.loadTestsFromTestCase(case)
    suite = unittest.TestSuite(test for test in tests if not names or any(part in test.id() for part in names))
    count = suite.countTestCases()
    outcome = unittest.TextTestRunner(io.StringIO()).run(suite)

    def name(test: Any) -> str:  # of a part of a test too
        whole: str = getattr(test, "test_case", test).id()
        return whole.rpartition(".")[2]

    failed = {name(test): text for test, text in reversed([*outcome.failures, *outcome.errors])}
    return count - len({name(test) for test, _ in outcome.skipped} - {*failed}), failed


def main() -> None:
    """Run the tests on every network, and print what fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--source", type=Path, help="the source distribution of Transformers")
    parser.add_argument("--whole", action="store_true", help="print all that a failing test says, not its last line")
    given = parser.parse_args()
    logging.disable_progress_bar()
    stock: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        modules = import_tests(given.source or fetched(Path(folder)), Path(folder))
        for network in NETWORKS:
            count, failed = run(tests_of(network, *modules), given.names)
            stock = failed if network == "stock" else stock
            alone = failed.keys() - stock.keys()
            print(f"\n{network}: {count} tests, {len(failed)} fail, {len(alone)} of them here alone")
            for test, text in sorted(failed.items()):
                where = "" if network == "stock" or test not in stock else " (stock ESM too)"
                print(f"  {test}{where}: {text if given.whole else text.strip().splitlines()[-1][:200]}", flush=True)


if __name__ == "__main__":
    main()
