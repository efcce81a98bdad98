"""Steps of the state machine that work on models in memory."""

from __future__ import annotations

import copy
import pickle
from contextlib import suppress
from typing import Any

import peft
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from hypothesis import strategies as st
from hypothesis.stateful import rule

from hf_perturb.loading import record_now
from support.owners import Owner, OwnerConfig
from support.truth import (
    PERTURBATIONS,
    REFUSALS,
    SIZES,
    Live,
    Truth,
    ViolationError,
    plainly_named,
    same_claim,
    without_provenance,
)

at, choice = st.integers(0, 3), st.integers(0, 10**6)
asked = st.sampled_from(PERTURBATIONS)
PARTS = {
    "trunk": lambda name: "layers.0" in name,
    "head": lambda name: name.startswith(("classifier.", "own_head.")),
    "embedding": lambda name: "embed_tokens" in name or "embedder.embedder" in name,
    "language head": lambda name: "lm_head" in name or "decoder" in name or "embed_out" in name,
    "all": lambda name: True,
}


def tied_pair(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two tensors that a network has as one, or one twice."""
    state = plainly_named(model.state_dict())
    names = ("embed_tokens.weight", "lm_head.weight")
    if not model.config.tie_word_embeddings or any(name not in state for name in names):
        return torch.empty(0), torch.empty(0)
    return state[names[0]], state[names[1]]


class MemoryRules:
    """What may be done to a model."""

    lives: list[Live]
    truth: Truth
    family: str
    network: str
    places: list[Any]

    def live(self, number: int) -> Live:
        return self.lives[number % len(self.lives)]

    def keep(self, number: int, live: Live) -> None:
        """Hold a model, in the place of another where there are enough."""
        if len(self.lives) < 3:
            self.lives.append(live)
        else:
            self.lives[number % 3] = live

    def refused(self, live: Live, before: Any, what: str, error: BaseException, why: str | None) -> None:
        """Check that a refusal has a reason, and has left the model as it was."""
        if why is None:
            raise ViolationError(f"{what}: refused where nothing is wrong: {error}") from error
        if live.state() != before:
            raise ViolationError(f"{what}: refused, and the model is another one than before: {error}") from error

    @rule(number=at, perturbation=asked, fresh=st.booleans())
    def perturb(self, number, perturbation, fresh):
        live = self.live(number)
        empty, before, record = live.is_unknown, live.state(), live.claim()
        if empty and fresh and live.filled != "base":
            return  # that would be a lie, which nobody can see through
        why, applies = None, not empty or fresh
        if not applies:
            why = "nobody has said what its weights are"
        elif record is not None and record.changed:
            why = "it has changed"
        elif record is not None and without_provenance(record, live.family) != without_provenance(
            perturbation, live.family
        ):
            why = "perturbations do not stack"
        elif record is None:
            try:
                self.truth.expect(live.model, perturbation)
            except ValueError as error:
                why = str(error)
        try:
            live.model.perturb(perturbation, fresh=fresh)
        except REFUSALS as error:
            tied = "its tied tensors differ" if "tie_weights()" in str(error) else None
            self.refused(live, before, "perturb", error, why or tied)
            return
        if why is not None:
            raise ViolationError(f"perturb: done, although {why}")
        if record is not None and live.state()[0] != before[0]:
            raise ViolationError("perturb: applied twice")
        if record is None:
            live.strayed = live.lenient = False

    @rule(number=at, part=st.sampled_from(sorted(PARTS)), how=st.sampled_from(["in place", "data", "optimiser"]))
    def train(self, number, part, how):
        model = self.live(number).model
        chosen = [x for name, x in model.named_parameters() if PARTS[part](name) and not x.is_meta]
        if not chosen:
            return
        if how == "in place":
            with torch.no_grad():
                for parameter in chosen:
                    parameter.add_(0.25)
        elif how == "data":
            for parameter in chosen:
                parameter.data = parameter.data * 2 + 0.125
        else:
            optimiser = torch.optim.SGD(chosen, lr=0.5)
            for parameter in chosen:
                parameter.grad = torch.ones_like(parameter)
            optimiser.step()
            optimiser.zero_grad()
        live = self.live(number)
        live.strayed |= live.claim() is None
        if live.is_unknown:
            live.filled = "something"

    @rule(number=at, other=at, assign=st.booleans(), clones=st.booleans())
    def load_the_state_of_another(self, number, other, assign, clones):
        live, state = self.live(number), self.live(other).model.state_dict()
        before = live.lines
        if any(tensor.is_meta for tensor in state.values()):
            return
        state = {name: tensor.detach().clone() for name, tensor in state.items()} if clones else dict(state)
        with suppress(RuntimeError):  # of another shape; what fits is there by then
            live.model.load_state_dict(state, strict=False, assign=assign)
        if assign and not torch.equal(*tied_pair(live.model)):
            live.model.tie_weights()
        live.strayed |= live.lines != before
        if live.is_unknown:
            live.filled = "something"

    @rule(number=at)
    def ask(self, number):
        live = self.live(number)
        if not live.is_unknown:
            said, told = live.claim(), record_now(live.model)
            if not same_claim(said, told, live.family) or not same_claim(
                told, live.model.config.perturbation, live.family
            ):
                raise ViolationError(f"ask: it would say {said}, and says {told}")

    @rule(number=at, dtype=st.sampled_from(["float32", "float16", "bfloat16", "float64"]), way=st.booleans())
    def cast(self, number, dtype, way):
        live, kind = self.live(number), getattr(torch, dtype)
        before, held = live.claim(), {parameter.dtype for parameter in live.model.parameters()}
        if any(parameter.is_meta for parameter in live.model.parameters()):
            return
        live.model.to(kind) if way else live.model.to("cpu", kind)
        if live.is_unknown:
            return
        if not same_claim(before, live.claim(), live.family):
            raise ViolationError(f"cast: it said {before}, and says {live.claim()}")
        if live.claim() is None:
            live.strayed |= held != {kind}

    @rule(number=at, perturbation=st.none() | asked, replaces=st.booleans())
    def set_the_configuration(self, number, perturbation, replaces):
        live = self.live(number)
        own, before, record = live.model.config, live.state(), live.claim()
        if not replaces:
            try:
                own.perturbation = perturbation
            except REFUSALS as error:
                self.refused(live, before, "config.perturbation", error, "the weights would not change")
            return
        if live.is_unknown or same_claim(record, perturbation, live.family):
            return
        live.model.config = copy.deepcopy(own)
        live.model.config.perturbation = perturbation
        for what in ("perturb", "save"):
            try:
                if what == "perturb":
                    live.model.perturb(PERTURBATIONS[0])
                else:
                    live.model.save_pretrained(self.places[0].path.with_name("not to be"))
            except REFUSALS as error:
                why = "another configuration"
                self.refused(live, before, what, error, why)
            else:
                raise ViolationError(f"{what}: done under a configuration that says {perturbation} of {record}")
        live.model.config = own

    @rule(number=at, other=at, way=st.sampled_from(["deepcopy", "pickle"]))
    def copy_it(self, number, other, way):
        live = self.live(number)
        made = copy.deepcopy(live.model) if way == "deepcopy" else pickle.loads(pickle.dumps(live.model))
        copied = Live(made, live.lenient, live.strayed, live.filled)
        if copied.is_unknown != live.is_unknown or copied.state() != live.state():
            raise ViolationError(f"{way}: the copy says {copied.claim()} of itself, the model {live.claim()}")
        self.keep(other, copied)

    @rule(number=at, other=at, way=st.sampled_from(["meta", "accelerate"]), asks=st.booleans(), fill=st.booleans())
    def build_empty(self, number, other, way, asks, fill):
        live = self.live(number)
        if live.is_unknown:
            return
        config = copy.deepcopy(live.model.config)
        if asks and config.perturbation is None:
            config.perturbation = PERTURBATIONS[1]
        if way == "meta":
            with torch.device("meta"):
                made = type(live.model)(config)
        else:
            with init_empty_weights():
                made = type(live.model)(config)
        empty = Live(made, strayed=live.strayed)
        if fill:
            state = {name: tensor.detach().clone() for name, tensor in live.model.state_dict().items()}
            made.load_state_dict(state, assign=True, strict=False)
            made.tie_weights()
            record = live.claim()
            empty.filled = "base" if record is None else record
        self.refuses_what_nobody_has_told(empty)
        self.keep(other, empty)

    def refuses_what_nobody_has_told(self, empty: Live) -> None:
        out = self.places[0].path.with_name("not to be")
        for what, act in (
            ("perturb", lambda: empty.model.perturb(PERTURBATIONS[0])),
            ("save", lambda: empty.model.save_pretrained(out)),
        ):
            try:
                act()
            except REFUSALS:
                continue
            raise ViolationError(f"{what}: done with a model that was built empty")
        if out.exists():
            raise ViolationError("save: refused, and something is written")

    @rule(number=at, slot=at, other=at)
    def dispatch_a_folder(self, number, slot, other):
        """Build a network empty and let accelerate fill it, which knows no records."""
        place = self.places[slot]
        if None not in place.sound or place.is_stock or len(place.files()) != 1:
            return
        cls = place.architecture()
        with init_empty_weights():
            made = cls(cls.config_class.from_pretrained(place.path))
        made.tie_weights()
        load_checkpoint_and_dispatch(made, str(place.files()[0]), device_map={"": "cpu"})
        empty = Live(made, strayed=place.strayed, filled="base" if place.claim is None else place.claim)
        self.refuses_what_nobody_has_told(empty)
        self.keep(other, empty)

    @rule(number=at, honest=st.booleans(), digest=st.booleans())
    def record_as(self, number, honest, digest):
        live = self.live(number)
        if live.filled in (None, "something") and live.is_unknown:
            return
        filled, before = live.filled, live.state()
        record = None if filled in (None, "base", "something") else filled
        if record is not None and (not digest or record.changed):
            record = record if record.changed else record.with_record(record.base, None)
        why = None if live.is_unknown else "it knows its weights"
        if any(tensor.is_meta for tensor in live.model.state_dict().values()):
            why = "without values"
        if record is not None and record.digest is not None and not record.changed and not honest:
            live.model.load_state_dict({name: x * 2 for name, x in live.model.state_dict().items()}, assign=True)
            before, why = live.state(), "another digest"
        try:
            live.model.record_as(record)
        except REFUSALS as error:
            if why is None and record is not None and record.digest is not None:
                why = "a digest of other weights"  # of a trunk, or of what was trained or cast in between
            self.refused(live, before, "record_as", error, why)
            if live.is_unknown:
                live.filled = "something"
            return
        if why is not None:
            raise ViolationError(f"record_as: done, although {why}")

    @rule(number=at, way=st.sampled_from(["merge", "unload", "keep"]), trains=st.booleans())
    def adapt(self, number, way, trains):
        live = self.live(number)
        if live.is_unknown:
            return
        said = live.claim()
        targets = ["up_embedder.conv"] if self.family == "carp" else ["q_proj", "fc1"]
        adapter = peft.get_peft_model(live.model, peft.LoraConfig(target_modules=targets, r=2))
        if trains:
            for name, parameter in adapter.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.ones_(parameter)
        if not same_claim(said, live.claim(), live.family):
            raise ViolationError(f"an adapter: it said {said}, and says {live.claim()}")
        self.check_all("with an adapter")
        if way == "keep":
            with suppress(*REFUSALS):  # PEFT looks at the folder that the model came from
                adapter.save_pretrained(self.places[0].path.with_name("adapter"))
            adapter.unload()
        elif way == "merge":
            live.model = adapter.merge_and_unload()
            live.strayed |= said is None
        else:
            live.model = adapter.unload()

    def check_all(self, where: str) -> None:
        raise NotImplementedError

    @rule(other=at, perturbation=st.none() | asked, seed=st.integers(0, 2), tells=st.booleans())
    def wrap_in_another_model(self, other, perturbation, seed, tells):
        config = OwnerConfig(self.network, SIZES[self.network])
        torch.manual_seed(seed)
        base = Owner(config).inner
        if perturbation is not None:
            try:
                self.truth.expect(base, perturbation)
            except ValueError:
                return None
        asking = OwnerConfig(self.network, SIZES[self.network], perturbation)
        torch.manual_seed(seed)
        owner = Owner(asking)
        live = Live(owner.inner)
        if not same_claim(live.claim(), perturbation, live.family):
            raise ViolationError(f"built with {perturbation}, it says {live.claim()}")
        self.check_one(live, "owned by another model")
        if not tells:
            return self.keep(other, live)
        out = self.places[0].path.with_name("owner")
        owner.save_pretrained(out)
        loaded = Live(Owner.from_pretrained(out).inner, filled=perturbation or "base")
        self.refuses_what_nobody_has_told(loaded)
        loaded.model.record_as(perturbation)
        self.check_one(loaded, "loaded by another model")
        return self.keep(other, loaded)

    def check_one(self, live: Live, where: str) -> None:
        raise NotImplementedError
