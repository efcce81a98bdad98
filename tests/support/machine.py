"""A state machine over the public interface: what a model or a folder says of itself is so, whatever was done to it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import hf_perturb
from support.machine_disk import DiskRules
from support.machine_files import FileRules
from support.machine_memory import MemoryRules
from support.models import HEADS
from support.truth import (
    PERTURBATIONS,
    REFUSALS,
    Control,
    Live,
    Place,
    Truth,
    ViolationError,
    base_model,
    check_live,
    network_lines,
    quiet,
)

STEPS: Counter[str] = Counter()


@cache
def template_of(network: str, head: str) -> tuple[Path, list[Control]]:
    """Return four folders, and the controls among them: two bases, one with a digest; a control; and a trained one."""
    root, truth = Path(tempfile.mkdtemp(prefix="template-")), Truth()
    atexit.register(shutil.rmtree, root)
    one, other = base_model(network, head, 0), base_model(network, head, 1)
    one.save_pretrained(root / "0")
    other.save_pretrained(root / "saved")
    hf_perturb.convert_checkpoint(root / "saved", root / "1")
    truth.expect(other, PERTURBATIONS[0])
    hf_perturb.create_variant(root / "1", root / "2", PERTURBATIONS[0])
    truth.expect(one, PERTURBATIONS[1])
    trained = type(one).from_pretrained(root / "0", perturbation=PERTURBATIONS[1])
    with torch.no_grad():
        next(trained.parameters()).add_(0.5)
    trained.save_pretrained(root / "3")
    shutil.rmtree(root / "saved")
    return root, truth.controls


class Machine(MemoryRules, FileRules, DiskRules, RuleBasedStateMachine):
    """Four folders, up to three models, and the truth beside them."""

    def __init__(self):
        super().__init__()
        self.quiet = quiet()
        self.quiet.__enter__()
        self.root = Path(tempfile.mkdtemp(prefix="truth-"))
        self.places = [Place(self.root / str(slot)) for slot in range(4)]
        self.lives, self.truth, self.dirty = [], Truth(), set()

    def teardown(self):
        self.quiet.__exit__(None, None, None)
        shutil.rmtree(self.root)

    @initialize(
        network=st.sampled_from(["esm1b", "carp", "esm1b", "carp", "esm1", "esm2"]), head=st.sampled_from(HEADS)
    )
    def begin(self, network, head):
        self.network, self.family = network, "carp" if network == "carp" else "fair_esm"
        template, controls = template_of(network, head)
        self.template, self.truth.controls = template, [*controls]
        shutil.copytree(template, self.root, dirs_exist_ok=True)
        for slot in range(4):
            self.noted(slot, slot)
        for slot in (0, 2):
            self.lives.append(Live(self.places[slot].architecture().from_pretrained(self.places[slot].path)))

    def noted(self, slot, source):
        """Note that a folder is as one of the template is."""
        place = self.places[slot]
        record = place.config.get("perturbation")
        record = None if record is None else hf_perturb.Perturbation.parse(record)
        self.written(slot, {None}, network_lines(place.stored()), record, strayed=source == 3)

    @rule(slot=st.integers(0, 3), source=st.integers(0, 3))
    def fetch_again(self, slot, source):
        """Put a whole folder in the place of another."""
        path = self.places[slot].path
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.template / str(source), path)
        self.noted(slot, source)

    @rule(slot=st.integers(0, 3), out=st.integers(0, 3), source=st.integers(0, 3), dtype=st.none() | st.just("float16"))
    def convert_what_is_whole(self, slot, out, source, dtype):
        """Convert a folder as it was fetched, which random steps leave seldom."""
        self.fetch_again(slot, source)
        self.convert(slot, out, dtype, True, None)

    @rule(
        slot=st.integers(0, 3),
        out=st.integers(0, 3),
        source=st.integers(0, 3),
        which=st.integers(0, 2),
        number=st.integers(0, 2),
        perturbation=st.none() | st.sampled_from(PERTURBATIONS),
    )
    def save_one_s_own(self, slot, out, source, which, number, perturbation):
        """Load a whole folder as a model of somebody's own, and save that."""
        self.fetch_again(slot, source)
        known = [*self.lives]
        self.load(slot, number, which, False, perturbation, "nothing", None)
        for place, live in enumerate(self.lives):
            if not any(live is each for each in known):
                self.save(place, out, "100GB", None, None, False)

    def check_one(self, live, where):
        check_live(self.truth, live, where)

    def check_all(self, where):
        for number, live in enumerate(self.lives):
            check_live(self.truth, live, f"{where}, model {number}")

    @invariant()
    def what_is_said_is_so(self):
        STEPS["steps"] += 1
        self.check_all("in memory")
        for slot in sorted(self.dirty):
            self.look(self.places[slot], f"folder {slot}")
        self.dirty.clear()

    def look(self, place: Place, where: str) -> None:
        """Load a folder as anybody would, and check what is said of it."""
        if not place.exists:
            return
        try:
            model = place.architecture().from_pretrained(place.path)
        except REFUSALS as error:
            STEPS["refused"] += 1
            if None in place.sound:
                raise ViolationError(f"{where}: refused where nothing is wrong: {error}") from error
            return
        STEPS["loaded"] += 1
        live = Live(model, lenient=None not in place.sound or place.is_stock, strayed=place.strayed)
        check_live(self.truth, live, where)
        self.check_headers(place, live, "nothing")
        if None in place.sound and not place.is_stock and not place.is_mixed:
            others = (name for name, line in live.lines.items() if place.lines.get(name, line) != line)
            if wrong := [name for name in others if not name.endswith("inv_freq")]:  # never narrower than float32
                raise ViolationError(f"{where}: {wrong} are loaded as something else")
            if (None if live.claim() is None else live.claim().to_dict()) != (
                None if place.claim is None else place.claim.to_dict()
            ):
                raise ViolationError(f"{where}: stored as {place.claim}, loaded as {live.claim()}")
