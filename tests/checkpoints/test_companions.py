"""What is taken over with weights: all that a tokenizer or a processor of Transformers reads, and nothing else."""

from __future__ import annotations

from contextlib import suppress

import pytest
from transformers import TOKENIZER_MAPPING

from hf_perturb.checkpoints.companions import companions_of
from hf_perturb.checkpoints.source import Place

SETTINGS = [
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "normalizer.json"),
    *("chat_template.json", "chat_template.jinja"),
]
OTHERS = [
    *("config.json", "model.safetensors", "model.safetensors.index.json", "adapter_config.json", "README.md"),
    *("trainer_state.json", "all_results.json", "training_args.bin", "notes.txt", "token.json", "credentials.json"),
    *("requirements.txt", ".env.json", "modeling.py", "vocab_list.csv"),
]


def taken(folder, names):
    for name in names:
        (folder / name).write_text("{}")
    return {path.name for path in companions_of(Place("base", str(folder), {}, None, None), code=False)}


def test_what_a_tokenizer_reads_is_taken(tmp_path):
    names = {*SETTINGS}
    for kind in TOKENIZER_MAPPING:
        with suppress(ImportError):  # some need a library that is not here
            names |= {*(getattr(TOKENIZER_MAPPING[kind], "vocab_files_names", None) or {}).values()}
    assert len(names) > len(SETTINGS) + 5
    assert names - taken(tmp_path, names) == set()


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_nobody_s_business_is_left(tmp_path, name):
    assert taken(tmp_path, [name]) == set()
