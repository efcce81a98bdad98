"""Steps of the state machine that work on folders."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import torch
import transformers
from hypothesis import strategies as st
from hypothesis.stateful import rule

import hf_perturb
from hf_perturb.perturbation import digest_of
from support.faults import failing_after
from support.machine_memory import asked, at
from support.models import HEADS, model_class
from support.owners import OWN, OWN_CLASSES, has_language_head
from support.truth import REFUSALS, Live, Place, Truth, ViolationError, check_stored, network_lines, same_claim, twin

KEYWORDS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "verify": {"verify": True},
    "float16": {"dtype": torch.float16},
    "bfloat16": {"dtype": "bfloat16"},
    "verify float16": {"verify": True, "dtype": torch.float16},
    "kernel": {"ignore_mismatched_sizes": True, "kernel_size": 7},
    "width": {"ignore_mismatched_sizes": True, "hidden_size": 16},
    "vocabulary": {"ignore_mismatched_sizes": True, "vocab_size": 40},
    "layers": {"ignore_mismatched_sizes": True, "num_hidden_layers": 3},
    "labels": {"ignore_mismatched_sizes": True, "num_labels": 5},
    "swapped": {"key_mapping": {r"layers\.0\.": "layers.9.", r"layers\.1\.": "layers.0."}},
    "pickle": {"use_safetensors": False},
    "safetensors": {"use_safetensors": True},
    "variant": {"variant": "x"},
    "device": {"device_map": "cpu"},
}
KEPT = {"verify", "dtype", "ignore_mismatched_sizes", "use_safetensors", "variant", "key_mapping", "device_map"}
PLAIN = {"nothing", "verify", "float16", "bfloat16", "safetensors", "labels", "device"}

# most writes are let be
PASSES = st.sampled_from([None, None, None, None, None, 0, 1, 2, 3, 5, 8])


class DiskRules:
    """What may be done to a folder."""

    lives: list[Live]
    truth: Truth
    family: str
    network: str
    places: list[Place]
    dirty: set[int]

    def expect_of(
        self, place: Place, cls: Any, perturbation: Any, keywords: dict[str, Any], stored: bool = False
    ) -> str | None:
        """Note what a perturbation makes of what is in a folder, as loaded or as stored; return why it can not."""
        try:
            keywords = {key: x for key, x in keywords.items() if key != "verify"}
            if "config" in keywords:
                keywords["config"] = copy.deepcopy(keywords["config"])
                keywords["config"].set_record(None, None, of_model=False)
            base = cls.from_pretrained(place.path, **keywords)
            if base.config.perturbation is not None:
                return "perturbations do not stack"
            if stored and not place.is_stock:
                base = twin(base, place.stored())
            self.truth.expect(base, perturbation)
        except (*REFUSALS, RuntimeError) as error:
            return str(error)
        return None

    @rule(
        slot=at,
        number=at,
        head=st.none() | st.sampled_from([*HEADS, 0, 1, 2]),
        auto=st.booleans(),
        perturbation=st.none() | st.none() | asked,
        key=st.sampled_from(sorted(KEYWORDS)),
        other=st.none() | at,
    )
    def load(self, slot, number, head, auto, perturbation, key, other):
        place = self.places[slot]
        if not place.exists:
            return
        stored_as, keywords = place.architecture(), dict(KEYWORDS[key])
        cls = stored_as if head is None else self.class_of(head)
        if key == "kernel" and self.network != "carp":
            keywords = dict(KEYWORDS["width"])
        if key == "labels" and not cls.__name__.endswith("Classification"):
            keywords = {"num_labels": 5}
        if other is not None and self.places[other].exists and not self.places[other].is_stock:
            try:
                config = cls.config_class.from_pretrained(self.places[other].path)
                keywords = {**{name: x for name, x in keywords.items() if name in KEPT}, "config": config}
            except REFUSALS:
                return
        if "config" in keywords and perturbation is None and keywords["config"].perturbation is not None:
            perturbation = keywords["config"].perturbation.with_record(None, None)  # a configuration asks for its own
        why = self.why_not(place, cls, perturbation, key, "config" in keywords)
        loader = cls
        if auto and "config" not in keywords and not place.is_stock and cls.__name__ not in OWN_CLASSES:
            head = cls.__name__.removeprefix(stored_prefix(cls)).replace("Model", "")
            loader = getattr(transformers, "AutoModel" + head)
        if perturbation is not None:
            why = self.expect_of(place, cls, perturbation, keywords) or why
            keywords["perturbation"] = perturbation
        try:
            model = loader.from_pretrained(place.path, **keywords)
        except REFUSALS as error:
            if why is None:
                raise ViolationError(f"load: refused where nothing is wrong: {error}") from error
            return
        live = Live(model, lenient=cls is not stored_as or "config" in keywords, strayed=place.strayed)
        live.lenient |= live.claim() is None and key not in ("nothing", "verify")
        self.check_one(live, f"loaded with {key}")
        self.check_headers(place, live, key)
        if perturbation is not None and not same_claim(live.claim(), perturbation, self.family):
            raise ViolationError(f"load: asked for {perturbation}, and it says {live.claim()}")
        self.keep(number, live)

    def class_of(self, head: str | int) -> Any:
        """Return a class of ours, or one of somebody's that are there for its network."""
        return model_class(self.network, head) if isinstance(head, str) else OWN[self.network][head]

    def why_not(self, place: Place, cls: Any, perturbation: Any, key: str, config: bool) -> str | None:
        """Return why a load may be refused, `None` for what must work."""
        if None not in place.sound or key not in PLAIN or config:
            return "it is not sound, or this is not asked of what is"
        if key.startswith("verify") and (place.claim is None or place.claim.changed or place.is_stock):
            return "nothing to verify"
        if cls is not place.architecture():
            has_head = has_language_head(place.architecture())
            is_strict = place.claim is not None or perturbation is not None or key.startswith("verify")
            if has_language_head(cls) and not has_head and is_strict:
                return "a head is missing"
            if place.is_stock:
                return "another class of a stock ESM"
        stacks = perturbation is not None and place.claim is not None
        if stacks and (place.claim.changed or not same_claim(place.claim, perturbation, self.family)):
            return "perturbations do not stack"
        return None

    def check_headers(self, place: Place, live: Live, key: str) -> None:
        """Raise where a model claims nothing, and the files that it came from carry a record."""
        if live.claim() is None and key not in ("pickle", "variant") and any(place.records_in_headers()):
            raise ViolationError("load: the files say what they are, and the model claims nothing")

    @rule(
        number=at,
        slot=at,
        size=st.sampled_from(["100GB", "100GB", "1KB"]),
        variant=st.sampled_from([None, None, None, "x"]),
        passes=PASSES,
        dies=st.booleans(),
    )
    def save(self, number, slot, size, variant, passes, dies):
        live, place = self.live(number), self.places[slot]
        before, claim, tree = live.state(), live.claim(), place.tree()
        unknown = live.is_unknown
        with failing_after(passes, place.path, dies) as faults:
            try:
                live.model.save_pretrained(place.path, max_shard_size=size, variant=variant)
            except REFUSALS as error:
                struck = faults is not None and faults.struck
                unknown |= "tie_weights()" in str(error)  # no file could hold what differs
                if not unknown and not struck:
                    raise ViolationError(f"save: refused where nothing is wrong: {error}") from error
                if unknown and place.tree() != tree:
                    raise ViolationError("save: refused, and the folder is another one than before") from error
                if struck:
                    place.sound, place.strayed = set(), place.strayed or live.strayed
                    self.dirty.add(slot)
                if live.state()[0] != before[0] or not same_claim(live.claim(), claim, self.family):
                    raise ViolationError(f"save: failed, and the model is another one: {live.claim()}") from error
                return
        if unknown:
            raise ViolationError("save: done with a model of which nobody has said what it is")
        after = live.state()
        if after[0] != before[0] or not same_claim(live.claim(), claim, self.family):
            raise ViolationError(f"save: the model said {claim}, and says {live.claim()}")
        self.written(slot, {variant}, live.lines, claim, live.strayed)
        stored = network_lines(place.stored(variant))
        if wrong := [name for name, line in stored.items() if live.lines[name] != line]:
            raise ViolationError(f"save: {wrong} are stored as something else")
        check_stored(place, variant, f"save {slot}")

    def written(self, slot: int, sound: set[str | None], lines: Any, claim: Any, strayed: bool, **more: Any) -> None:
        """Note that a folder was written whole, and check that it says what was claimed."""
        self.places[slot] = Place(self.places[slot].path, sound, dict(lines), claim, strayed, **more)
        self.dirty.add(slot)
        record = self.places[slot].config.get("perturbation")
        said = None if record is None else hf_perturb.Perturbation.parse(record)
        if not same_claim(said, claim, self.family):
            raise ViolationError(f"written: {said} of what is {claim}")
        self.places[slot].claim = said

    @rule(
        slot=at,
        out=at,
        dtype=st.sampled_from([None, None, "float16", "float32"]),
        clears=st.sampled_from([True, True, False]),
        passes=PASSES,
    )
    def convert(self, slot, out, dtype, clears, passes):
        self.make(
            slot,
            out,
            lambda source, target: hf_perturb.convert_checkpoint(source, target, dtype=dtype, force=True),
            clears,
            passes,
        )

    def make(self, slot: int, out: int, run: Any, clears: bool, passes: int | None, **more: Any) -> bool:
        """Make a folder of another by a function that writes it whole or not at all; return whether it did."""
        place, target = self.places[slot], self.places[out]
        if not place.exists or slot == out:
            return False
        if clears and target.path.exists():
            shutil.rmtree(target.path)
            self.places[out] = target = Place(target.path)
        why = None if None in place.sound else "it is not sound"
        why = "there is something" if target.path.exists() else why
        tree = target.tree()
        with failing_after(passes, target.path.parent) as faults:
            try:
                run(place.path, target.path)
            except REFUSALS as error:
                if target.tree() != tree:
                    raise ViolationError(f"{error}: failed, and the folder is another one than before") from error
                if why is None and not (faults and faults.struck) and not more.get("may_fail"):
                    raise ViolationError(f"refused where nothing is wrong: {error}") from error
                return False
        claim = place.claim
        if why == "it is not sound":
            record = self.places[out].config.get("perturbation")
            claim = None if record is None else hf_perturb.Perturbation.parse(record)
        lines = network_lines(self.places[out].stored())
        stock = more.get("stock", False)
        self.written(out, {None}, lines, claim, place.strayed or why is not None, is_stock=stock)
        if not stock:
            check_stored(self.places[out], None, f"made {out}")
        return True

    @rule(
        slot=at,
        out=at,
        perturbation=asked,
        recipe=st.booleans(),
        clears=st.sampled_from([True, True, False]),
        passes=PASSES,
    )
    def create(self, slot, out, perturbation, recipe, clears, passes):
        place, target = self.places[slot], self.places[out]
        if not place.exists or slot == out:
            return
        if clears and target.path.exists():
            shutil.rmtree(target.path)
            self.places[out] = target = Place(target.path)
        why = None if None in place.sound else "it is not sound"
        why = "there is something" if target.path.exists() else why
        why = "perturbations do not stack" if None in place.sound and place.claim is not None else why
        why = self.expect_of(place, place.architecture(), perturbation, {}, stored=True) or why
        why = "recipes need more of a base" if recipe else why
        tree = target.tree()
        with failing_after(passes, target.path.parent) as faults:
            try:
                record = hf_perturb.create_variant(place.path, target.path, perturbation, recipe=recipe, force=True)
            except REFUSALS as error:
                if target.tree() != tree:
                    raise ViolationError(f"create: {error}: and the folder is another one than before") from error
                if why is None and not (faults and faults.struck):
                    raise ViolationError(f"create: refused where nothing is wrong: {error}") from error
                return
        if why == "perturbations do not stack":
            raise ViolationError(f"create: of what is {place.claim}")
        lines = {} if recipe else network_lines(self.places[out].stored())
        sound: set[str | None] = set() if recipe else {None}
        self.written(out, sound, lines, record, False, is_recipe=recipe)

    @rule(slot=at, base=st.none() | at)
    def verify(self, slot, base):
        place = self.places[slot]
        if not place.exists:
            return
        against = None if base is None else self.places[base].path
        sound, claim = None in place.sound, place.claim
        try:
            found = hf_perturb.verify_variant(place.path, against)
        except REFUSALS as error:
            if sound and base is None and claim is not None and not place.is_stock:
                raise ViolationError(f"verify: refused where nothing is wrong: {error}") from error
            return
        if sound and claim is not None and base is None and found.ok == claim.changed:
            raise ViolationError(f"verify: {found} of what is {claim}")
        if found.ok and not place.is_recipe:
            self.check_verified(place, found.base is not None)

    def check_verified(self, place: Place, with_base: bool) -> None:
        """Raise a `ViolationError` if what was verified is not what it says."""
        record, stored = place.config.get("perturbation"), place.stored()
        if record is None or place.is_stock or not stored:
            return
        record = hf_perturb.Perturbation.parse(record)
        if record.changed or not self.truth.holds(record, network_lines(stored), self.family):
            raise ViolationError(f"verify: ok, of what is not {record}")
        if record.digest is not None and record.digest != digest_of(place.counted()):
            raise ViolationError("verify: ok, with another digest")

    @rule(slot=at, out=at, trains=st.booleans(), exports=st.booleans())
    def export(self, slot, out, trains, exports):
        """Give a network to Transformers' own ESM, which keeps our record when it saves what it has trained."""
        place = self.places[slot]
        if self.network not in ("esm1b", "esm2") or slot == out or not place.exists:
            return
        if exports and not place.is_stock:
            heads = ("FairEsmModel", "FairEsmForMaskedLM")
            self.make(
                slot,
                out,
                lambda source, target: hf_perturb.export_checkpoint(source, target, "transformers"),
                True,
                None,
                stock=True,
                may_fail=place.architecture().__name__ not in heads,
            )
            return
        if not place.is_stock or None not in place.sound:
            return
        cls = getattr(transformers, place.config["architectures"][0])
        model = cls.from_pretrained(place.path)
        if trains:
            with torch.no_grad():
                model.base_model.encoder.layer[0].intermediate.dense.weight.add_(0.5)
        target = self.places[out]
        if target.path.exists():
            shutil.rmtree(target.path)
        model.save_pretrained(target.path)
        self.places[out] = Place(target.path, set(), {}, place.claim, place.strayed or trains, is_stock=True)
        self.dirty.add(out)

    def check_one(self, live: Live, where: str) -> None:
        raise NotImplementedError

    def keep(self, number: int, live: Live) -> None:
        raise NotImplementedError

    def live(self, number: int) -> Live:
        raise NotImplementedError


def stored_prefix(cls: Any) -> str:
    return "Carp" if cls.__name__.startswith("Carp") else "FairEsm"
