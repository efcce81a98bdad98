"""A checkpoint is one thing, opened once: what it came as, its network, its record, and its tensors."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.catalog import CATALOG
from hf_perturb.checkpoints.evidence import check_record
from hf_perturb.checkpoints.network import Network
from hf_perturb.checkpoints.shapes import Shape, listed, without_prefix
from hf_perturb.checkpoints.source import KINDS, Place
from hf_perturb.checkpoints.tensors import Region, Tensor, elements_of, same_values
from hf_perturb.demo import located
from hf_perturb.errors import CheckpointError, ModelInputError, StackedPerturbationError
from hf_perturb.perturbation.digest import digest_of_lines
from hf_perturb.perturbation.floats import DTYPES, Array, dtype_code, other_types
from hf_perturb.perturbation.parallel import for_each
from hf_perturb.perturbation.spec import Perturbation

_LOG = logging.getLogger("hf_perturb")
_LOOKS = 10  # at files that somebody replaces meanwhile
_ROTARY = ".rot_emb.inv_freq"  # stays float32 at least, as it does in the model


@dataclass
class Checkpoint:
    """Configuration, record and tensors of a checkpoint; its values stay in its files until they are asked for.

    Args:
        name: how messages call it.
        origin: the format that it came in: `fair-esm`, `sequence-models`, `transformers` or `hf_perturb`.
        described: the network, `None` for a family that is not ours, which only a class of somebody's can load.
        tensors: by document name, a tied one once; `check` puts them in the order of the original class.
        stored: what its `config.json` says of it, in our terms; empty for an original file.
        others: what else is written there, which no network of ours has.
        record: what was done to its weights, `None` for a base.
        dtype: the type that its own package loads it in (`F32`), `None` for that of the file.
        place: where its files are, `None` for an original file.
        headers: the metadata of each safetensors file, by its name.
        is_recipe: whether it has a record and no weights.
        unusable: why it can be loaded as a trunk alone, if so.
        owner: the class that somebody derived from ours, or that holds one of ours, if it was stored by one.
        own: what such a class has beside the network, by the names that it is stored by.
        prefix: what the stored names of the network's tensors begin with.
        notes: what a user should know about how it was read.
        rope_theta: what its rotary frequencies were computed from, where they are not stored.
    """

    name: str
    origin: str
    described: Network | None
    tensors: dict[str, Tensor]
    stored: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    record: Perturbation | None = None
    dtype: str | None = None
    place: Place | None = None
    headers: dict[str, dict[str, str] | None] = field(default_factory=dict)
    is_recipe: bool = False
    unusable: str = ""
    owner: str = ""
    own: dict[str, Tensor] = field(default_factory=dict)
    prefix: str = ""
    notes: list[str] = field(default_factory=list)
    rope_theta: float | None = None

    @classmethod
    def open(
        cls,
        source: str | Path,
        revision: str | None = None,
        *,
        hub: Mapping[str, Any] | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        weights: bool = True,
        location: str | None = None,
        family: str | None = None,
        rules: str | None = None,
        trust_remote_code: bool = False,
    ) -> Checkpoint:
        """Open a checkpoint of any kind: read its configuration and the headers of its files, once.

        Args:
            source: a folder or Hub id of ours or of any network that Transformers loads, with weights or a recipe; an
                original `.pt` file; or `demo`.
            revision: branch, tag or commit of a Hub id.
            hub: what else finds a file on the Hub; see `HUB_ARGUMENTS`.
            variant: Transformers' `variant=`.
            use_safetensors: Transformers' `use_safetensors=`.
            weights: false to read the configuration alone.
            location: the folder or Hub id, if it is not what `source` stands for.
            family: of one whose configuration names none.
            rules: with `"transformers"`, a stock ESM is what Transformers has it as, and not one of ours.
            trust_remote_code: whether the code of a network that Transformers does not have may be run.

        Raises:
            ModelInputError: if the source is no name.
            CheckpointError: if it is missing, damaged, or keeps changing while it is read.
        """
        if not isinstance(source, str | Path) or not str(source):
            raise ModelInputError(f"got {source!r} for a checkpoint; {KINDS}")
        from hf_perturb.checkpoints.reading import read_file, read_place  # which make one of these

        name = str(source)
        location = located(name) if location is None else location
        if (file := Path(location)).is_file():
            return read_file(file)
        if name in CATALOG and not Path(name).exists():
            raise CheckpointError(
                f"{name!r} is a name of the catalogue; fetch it and make a base of it first: hf-perturb convert {name}"
                " OUT"
            )
        asked = {**(hub or {}), **({} if revision is None else {"revision": revision})}
        for look in range(_LOOKS):
            time.sleep(0.01 * look)
            place = Place(name, location, asked, variant, use_safetensors)
            try:
                opened = read_place(place, weights, family, rules, trust_remote_code)
            except CheckpointError:
                if place.is_as_found():
                    raise
            else:
                if place.is_as_found():
                    return opened
        raise CheckpointError(
            f"{name}: its files change while they are read; wait until they are written, and try again"
        )

    @property
    def written(self) -> dict[str, Any]:
        """All that its `config.json` says, also to a class that somebody derived from ours."""
        return {**self.others, **self.stored}

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor that is stored."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def location(self) -> str:
        """The folder or Hub id that it was opened at."""
        return self.name if self.place is None else self.place.location

    @property
    def is_local(self) -> bool:
        """Whether it is a folder."""
        return self.place is not None and self.place.is_local

    @property
    def network(self) -> Network:
        """The network.

        Raises:
            CheckpointError: if it is not one of ours.
        """
        if self.described is None:
            raise CheckpointError(f"{self.name!r}: {self.unusable}")
        return self.described

    @property
    def revision(self) -> str | None:
        """The commit on the Hub that it came from."""
        return None if self.place is None else self.place.commit

    @property
    def stated_digest(self) -> str | None:
        """The digest that it states: a variant's is in its record."""
        return self.stored.get("digest") if self.record is None else self.record.digest

    @property
    def has_changed(self) -> bool:
        """Whether its weights are no longer what its record made of them: trained further, edited or merged."""
        return self.record is not None and self.record.changed

    @property
    def published_as(self) -> str | None:
        """The name of the published checkpoint that its weights are, where that is known."""
        return self.stored.get("published_as")

    @property
    def stated_dtype(self) -> str | None:
        """The type that its configuration states, `F32`."""
        stated = self.stored.get("dtype") or self.stored.get("torch_dtype")
        return dtype_code(stated) if stated is not None and str(stated) in DTYPES.values() else None

    @property
    def parameters(self) -> int:
        """Number of parameters of the network; a tied one counts once."""
        tied = self.network.tied
        shapes = {name: shape for name, shape in self.network.shapes.items() if name not in tied}
        return sum(elements_of(shape) for name, shape in shapes.items() if self.network.is_parameter(name))

    def is_current(self) -> bool:
        """Whether its files are still the ones that were opened."""
        return self.place is None or self.place.is_as_found()

    def is_intact(self) -> bool:
        """Whether nobody has written into the files that were opened; others may have taken their names.

        A pickle is known by its name alone.
        """
        sources = [tensor.source for tensor in self.tensors.values()]
        files = {source.file for source in sources if isinstance(source, Region)}
        return all(file.is_intact() for file in files) and (bool(files) or self.is_current())

    def dtypes(self, asked: str | None = None) -> dict[str, str]:
        """Return the type of every tensor, as stored, as its package has it, or as asked for (`F32`)."""
        chosen = asked or self.dtype
        types = {name: chosen or tensor.dtype for name, tensor in self.tensors.items()}
        narrow = ("F16", "BF16")
        return {name: "F32" if kind in narrow and name.endswith(_ROTARY) else kind for name, kind in types.items()}

    @property
    def kinds(self) -> set[str]:
        """The types of its weights, as stored or as its package has them; rotary tables have one of their own."""
        return {kind for name, kind in self.dtypes().items() if not name.endswith(_ROTARY)}

    def values(self, name: str) -> Array:
        """Return the values of a tensor, in the type and shape that they are stored in."""
        return self.tensors[name].values()

    def lines(self) -> dict[str, str]:
        """Return what a digest says of each tensor as it is stored; reads all of them."""
        lines = dict.fromkeys(self.tensors, "")

        def read(name: str) -> None:
            lines[name] = self.tensors[name].digest()

        for_each(read, self.tensors)
        return lines

    @property
    def stated_lines(self) -> dict[str, str]:
        """What the headers of its files say that `lines` returns, for the tensors that they say it of."""
        return {name: line for name, tensor in self.tensors.items() if (line := tensor.stated_line) is not None}

    def digest(self) -> str:
        """Return the digest of its weights as they are stored; reads all of them."""
        return digest_of_lines(self.lines())

    def base(self) -> Checkpoint:
        """Check that a perturbation can be applied to it, and return it.

        Raises:
            StackedPerturbationError: if it is a variant.
            CheckpointError: as `check` does.
        """
        if self.record is not None and not self.is_recipe:
            raise StackedPerturbationError(
                f"base {self.name!r} is a variant already, by {self.record}; start from its base"
            )
        return self.check()

    def check(self, *, record: bool = True) -> Checkpoint:
        """Compare the tensors with those of the network, put them in its order, and return the checkpoint.

        Args:
            record: whether to compare the record with what the files of weights say, too.

        Raises:
            CheckpointError: naming what is missing, left over, of another shape or kind; and for a recipe.
            DigestError: if the record is that of other weights.
        """
        if self.unusable:
            raise CheckpointError(f"{self.name!r}: {self.unusable}")
        if self.is_recipe:
            base = self.record.base.name if self.record is not None and self.record.base is not None else None
            raise CheckpointError(
                f"{self.name!r} is a recipe; give it its weights first: hf-perturb create {self.name} OUT; or start"
                f" from its base {base!r}"
            )
        if isinstance(self.described, AnyNetwork):
            self._take_own(self.described)
        else:
            self.tensors, _ = without_prefix(self.tensors, self.network.anchor)
            self.drop_tied()
        said = self.network.differences(self.shapes)
        types = {name: tensor.dtype for name, tensor in self.tensors.items()}
        if isinstance(self.described, AnyNetwork):  # whose buffers may be of any type
            types = {name: kind for name, kind in types.items() if self.network.is_parameter(name)}
        odd = other_types(types)
        said = "; ".join(filter(None, (said, odd)))
        if said and self.stored.get("quantization_config") is not None:
            said = _quantised(self.stored)
        if said:
            raise CheckpointError(f"{self.name}: {said}")
        order = {name: None for name in self.network.shapes if name in self.tensors}
        self.tensors = {name: self.tensors[name] for name in order | dict.fromkeys(self.tensors)}
        if record:
            check_record(self)
        return self

    def _take_own(self, network: AnyNetwork) -> None:
        """Leave out what no class of the network has: whoever loads it would have no place for it."""
        if self.stored.get("quantization_config") is not None:
            raise CheckpointError(f"{self.name}: {_quantised(self.stored)}")
        self.described = network = network.with_tensors(self.shapes)
        table = network.table()
        if left := [name for name in self.tensors if table.find(name) is None]:
            classes = " or ".join(each.__name__ for each in network.classes)
            self.notes.append(f"left out, for {classes} has no such tensors: {listed(left)}")
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name not in left}
        self.drop_tied()
        self.described = network = network.with_tensors(self.shapes)
        if missing := network.missing():
            self.notes.append(
                f"{network.classes[0].__name__} has tensors that are not stored, and Transformers draws them anew each"
                f" time that it loads one: {listed(missing)}"
            )
        if stacks := network.stacks:
            one, other = next(iter(stacks[0].patterns)), next(iter(stacks[0].shapes))
            stored, held = (sum(map(len, each)) for each in ([x.patterns for x in stacks], [x.shapes for x in stacks]))
            self.notes.append(
                f"{stored} tensors are {held} others once they are loaded, and are perturbed as these: {one} is a part"
                f" of {other}"
            )

    def named_as(self, other: Checkpoint) -> Checkpoint:
        """Return the same checkpoint with its tensors called as in another one, of a network with the same trunk."""
        if not (isinstance(self.described, AnyNetwork) and isinstance(other.described, AnyNetwork)):
            return self
        names = self.described.names_in(other.described)
        renamed = {names[name]: tensor for name, tensor in self.tensors.items()}
        network = self.described.with_tensors({name: tensor.shape for name, tensor in renamed.items()})
        return replace(self, tensors=renamed, described=network)

    def tell(self) -> None:
        """Log what a user should know of how the tensors of a network that is none of ours were read."""
        for note in self.notes if isinstance(self.described, AnyNetwork) else ():
            _LOG.warning("%s: %s", self.name, note)

    def drop_tied(self) -> None:
        """Leave out tensors that are another one by a second name.

        Raises:
            CheckpointError: if their values differ.
        """
        for name, source in self.network.tied.items():
            tied = self.tensors.pop(name, None) if name in self.network.shapes else None
            if tied is not None and source in self.tensors and not same_values(tied, self.tensors[source]):
                raise CheckpointError(
                    f"{self.name}: {name} and {source} differ, and this network has one tensor for both; one with a"
                    " head of its own has tie_word_embeddings false in its config.json"
                )

    def configuration(
        self,
        network: Network,
        record: Perturbation | None,
        *,
        digest: str | None = None,
        dtype: str,
        published_as: str | None = None,
        torch_version: str | None = None,
    ) -> dict[str, Any]:
        """Return the content of the `config.json` of a checkpoint that is made of this one.

        Args:
            network: of the one that is made.
            record: what was done to its weights, with base and digest.
            digest: of a base's weights.
            dtype: of its weights, `F32`.
            published_as: name of the published checkpoint that the weights, or those of the base, are.
            torch_version: that drew them, where it did.
        """
        left = {"perturbation", "digest", "torch_version", "_name_or_path", "published_as"}
        left |= {*()} if isinstance(network, AnyNetwork) else {"torch_dtype", "num_labels"}
        kept = {key: value for key, value in self.stored.items() if key not in left}
        said = {
            "digest": digest,
            "perturbation": None if record is None else record.to_dict(),
            "published_as": published_as,
            "torch_version": torch_version,
        }
        said = {key: value for key, value in said.items() if value is not None}
        if isinstance(network, AnyNetwork):  # whose files are stock ones, and stay so
            is_cast = self.kinds and dtype not in self.kinds
            kept = {key: value for key, value in kept.items() if not is_cast or key != "torch_dtype"}
            return {**kept, **({"dtype": DTYPES[dtype]} if is_cast else {}), **said}
        made = {"dtype": DTYPES[dtype], "transformers_version": version("transformers")}
        return {**kept, **network.to_dict(), **made, **said}


def write_configuration(folder: Path, content: Mapping[str, Any]) -> None:
    """Write a `config.json`."""
    (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _quantised(stored: Mapping[str, Any]) -> str:
    said = stored["quantization_config"]
    method = said.get("quant_method", "unknown") if isinstance(said, dict) else "unknown"
    return f"its weights are quantised ({method}), and no digest tells of those; use what they were made from"
