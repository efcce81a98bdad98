"""Steps of the state machine that leave in a folder what does not belong there."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st
from hypothesis.stateful import rule

from support.machine_memory import at
from support.truth import REFUSALS, Live, Place, ViolationError


class FileRules:
    """What files may be left over, edited, or copied from elsewhere."""

    places: list[Place]
    dirty: set[int]

    def live(self, number: int) -> Live:
        raise NotImplementedError

    @rule(
        slot=at,
        other=at,
        what=st.sampled_from(["weights", "one file", "config.json", "index"]),
        first=st.integers(0, 9),
    )
    def copy_files(self, slot, other, what, first):
        """Let files lie where those of another folder are."""
        place, source = self.places[slot], self.places[other]
        if slot == other or not (place.exists and source.exists):
            return
        files = sorted(path for path in source.path.iterdir() if path.is_file())
        weights = [path for path in files if path.suffix in (".safetensors", ".bin")]
        chosen = {
            "weights": [*weights, *source.path.glob("*.index.*")],
            "one file": weights[first % len(weights) :][:1] if weights else [],
            "config.json": [source.path / "config.json"],
            "index": [*source.path.glob("*.index.*")],
        }[what]
        for path in chosen:
            (place.path / path.name).unlink(missing_ok=True)  # models that were loaded from it have it mapped
            shutil.copy(path, place.path / path.name)
        self.tampered(slot, source.strayed)

    def tampered(self, slot: int, strayed: bool = False) -> None:
        place = self.places[slot]
        place.sound, place.strayed, place.is_recipe = set(), place.strayed or strayed, False
        self.dirty.add(slot)

    @rule(
        slot=at,
        edit=st.sampled_from(
            ["no record", "no digest", "no mark", "mark", "dtype", "seed", "base", "no base", "untied"]
        ),
    )
    def edit_the_configuration(self, slot, edit):
        place = self.places[slot]
        if not place.exists:
            return
        config = place.config
        record = config.get("perturbation")
        if edit == "seed" and record is not None:
            self.forge(place, {**config, "perturbation": {**record, "seed": 12345}})
            return
        if edit == "no record":
            config.pop("perturbation", None)
        elif edit == "dtype":
            config["dtype"] = "float16"
        elif edit == "untied":
            config["tie_word_embeddings"] = not config.get("tie_word_embeddings", True)
        elif record is None:
            if edit == "mark":
                config["perturbation"] = {"method": "reinit"}
                config.pop("digest", None)
            else:
                return
        elif edit in ("no digest", "no mark", "no base"):
            record.pop({"no digest": "digest", "no mark": "changed", "no base": "base"}[edit], None)
        elif edit == "mark":
            record["changed"] = True
        else:
            record["base"] = {"name": "another"}
        if config != place.config:
            (place.path / "config.json").write_text(json.dumps(config))
            self.tampered(slot, strayed=edit == "mark")

    def forge(self, place: Place, config: dict[str, Any]) -> None:
        """Let a configuration say what the files of weights, where they say anything, do not."""
        file = place.path / "config.json"
        true = file.read_bytes()
        file.write_text(json.dumps(config))
        with suppress(*REFUSALS):
            place.architecture().from_pretrained(place.path)
            if any(place.records_in_headers()) and not place.is_recipe:
                raise ViolationError("load: of a configuration that says another seed than the files of weights")
        file.write_bytes(true)

    @rule(slot=at, number=at, what=st.sampled_from(["pickle", "bare", "shard gone", "stripped"]))
    def put_weights(self, slot, number, what):
        """Put weights into a folder that say nothing of themselves, or take some away."""
        place, live = self.places[slot], self.live(number)
        if not place.exists:
            return
        state = {name: x.detach().contiguous().clone() for name, x in live.model.state_dict().items() if not x.is_meta}
        if what == "pickle":
            torch.save(state, place.path / "pytorch_model.bin")
        elif what == "bare":
            for file in place.files():
                file.unlink(missing_ok=True)
            (place.path / "model.safetensors.index.json").unlink(missing_ok=True)
            torch.save(state, place.path / "pytorch_model.bin")
        elif what == "stripped":
            for file in place.files():
                with suppress(OSError, safetensors.SafetensorError):
                    tensors = {name: x.clone() for name, x in safetensors.torch.load_file(file).items()}
                    safetensors.torch.save_file(tensors, file)
        else:
            for file in place.files()[:1]:
                file.unlink(missing_ok=True)
        self.tampered(slot)
