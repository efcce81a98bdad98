"""`convert`: a checkpoint of any origin becomes a base folder, or a file or folder in another package's format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from hf_perturb.cards.card import base_card, variant_card
from hf_perturb.checkpoints.any_network import AnyNetwork
from hf_perturb.checkpoints.catalog import CATALOG, published_name
from hf_perturb.checkpoints.checkpoint import Checkpoint, write_configuration
from hf_perturb.checkpoints.companions import taken_over, write_companions
from hf_perturb.checkpoints.evidence import differences, other_records
from hf_perturb.checkpoints.formats import DTYPES, FORMATS
from hf_perturb.checkpoints.origins.stock_esm import config_to_stock, stock_names
from hf_perturb.checkpoints.shapes import listed
from hf_perturb.checkpoints.tensors import Tensor
from hf_perturb.demo import located
from hf_perturb.errors import CheckpointError, DigestError
from hf_perturb.perturbation import Perturbation
from hf_perturb.perturbation.floats import dtype_code
from hf_perturb.storage.folders import nothing_written, refuse_existing, refuse_out, whole_folder
from hf_perturb.variants.blueprint import plan_for, steps_of
from hf_perturb.variants.stream import write_weights


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` wrote.

    Args:
        origin: the format that the source came in.
        architecture: the class that the base is stored as.
        parameters: of the network; a tied one counts once.
        digest: of its weights.
        notes: what a user should know about how it was read.
    """

    origin: str
    architecture: str
    parameters: int
    digest: str
    notes: tuple[str, ...]


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    allow_nonfinite: bool = False,
    force: bool = False,
) -> Conversion:
    """Make a base folder of a checkpoint: configuration, safetensors, tokenizer and card, whole or not at all.

    Of a variant a variant is made, with its record. One that was trained further stays marked as changed.

    Args:
        source: an original `.pt` file of fair-esm or sequence-models, a name of the catalogue (which is downloaded), a
            folder or Hub id of Transformers' own ESM, or one of ours.
        out: the folder to write.
        dtype: `"float32"`, `"float16"`, `"bfloat16"` or `"float64"`; `None` for the type in which the source's own
            package loads it: float32 for originals, the stored one for the others.
        allow_nonfinite: write NaN and infinite weights too.
        force: replace the folder if it is a base that this function wrote (for a variant: a variant).

    Raises:
        FolderExistsError: if `out` exists and may not be replaced.
        CheckpointError: if the source is missing, damaged, of another family, lacks tensors, or has weights that are
            not numbers, or if the folder cannot be written.
        DigestError: if the source records another digest than its weights have.
    """
    source, out = str(source), Path(out)
    if dtype is not None and dtype not in DTYPES:
        raise CheckpointError(f"dtype: got {dtype!r}; allowed: {', '.join(DTYPES)}")
    place = Path(located(source))
    if source in CATALOG or not force:
        refuse_out(out, place, force, "base")  # before anything is fetched
    checkpoint = _checked(_open_source(source))
    beside = {file.name for file in taken_over(checkpoint)}
    what = "base" if checkpoint.record is None else "variant"
    check = partial(refuse_out, source=place, force=force, kind=what, beside=lambda file: file.name in beside)
    check(out)
    with nothing_written(out), whole_folder(out, check) as folder:
        dtypes = checkpoint.dtypes(None if dtype is None else dtype_code(dtype))
        written, record = write_weights(folder, checkpoint.tensors, dtypes, checkpoint.record)
        if not allow_nonfinite:
            _refuse_nonfinite(checkpoint, written.nonfinite)
        digest = written.digest()
        cast = any(dtypes[name] != tensor.dtype for name, tensor in checkpoint.tensors.items())
        _check_weights(checkpoint, None if cast else written.digests)
        network = checkpoint.network
        published = published_name(source, network) or checkpoint.published_as
        of_base = digest if record is None else None
        kind = next(iter(dtypes.values()))
        content = checkpoint.configuration(network, record, digest=of_base, dtype=kind, published_as=published)
        write_configuration(folder, content)
        write_companions(checkpoint, folder)
        _write_card(folder, checkpoint, record, of_base, published)
    return Conversion(checkpoint.origin, network.architecture, checkpoint.parameters, digest, tuple(checkpoint.notes))


def _open_source(source: str) -> Checkpoint:
    """Open a checkpoint, and fetch it first if it is a name of the catalogue."""
    if source in CATALOG and not Path(source).exists():
        # only who fetches an original pays for the client
        from hf_perturb.checkpoints.downloads import download

        return Checkpoint.open(download(CATALOG[source]))
    opened = Checkpoint.open(source)
    if isinstance(opened.described, AnyNetwork) and opened.record is None:
        raise CheckpointError(
            f"{source}: model_type is {opened.described.family!r}; allowed: fair_esm, carp, esm (Transformers' own); a"
            " base of any other network is what Transformers loads already: hf-perturb create takes it as it is"
        )
    return opened


def _write_card(
    folder: Path,
    checkpoint: Checkpoint,
    record: Perturbation | None,
    digest: str | None,
    published: str | None,
    stock: bool = False,
) -> None:
    """Write the card of a base or a variant; see `base_card`."""
    if record is None:
        text = base_card(checkpoint, digest, published, stock)
    else:
        network = checkpoint.network
        steps = steps_of(network, plan_for(network, record))
        text = variant_card(network, record, steps, published, stock=stock)
    (folder / "README.md").write_text(text, encoding="utf-8")


def export_checkpoint(
    source: str | Path,
    out: str | Path,
    to: str,
    *,
    allow_nonfinite: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> tuple[Path, ...]:
    """Write a base or a variant in another package's format, whole or not at all.

    Args:
        source: as for `convert_checkpoint`, but for the catalogue.
        out: a folder for `"transformers"`, a `.pt` file for the others; neither may exist.
        to: `"transformers"` (ESM-1b, ESM-1v, ESM-2), `"fair-esm"` or `"sequence-models"`.
        allow_nonfinite: write NaN and infinite weights too.
        on_note: called with what a user should know about how the source was read.

    Returns:
        The folder, or the files; fair-esm's contact regression is one of its own.

    Raises:
        FolderExistsError: if `out` exists.
        CheckpointError: if the format cannot hold this network, or the source cannot be used, or has weights that are
            not numbers.
        DigestError: if the source records another digest than its weights have.
    """
    if to not in FORMATS:
        raise CheckpointError(f"to: got {to!r}; allowed: {', '.join(FORMATS)}")
    refuse_existing(Path(out))
    checkpoint = _checked(Checkpoint.open(source))
    record = checkpoint.record
    if isinstance(checkpoint.network, AnyNetwork):
        raise CheckpointError(f"{source} is a {checkpoint.network.family}, which Transformers loads as it is")
    if to == "transformers" and record is not None and record.rules == "transformers":
        raise CheckpointError(
            f"{source} is {record}, by the names that our classes give tensors, and Transformers' own give others; make"
            " that control of a base in Transformers' format (hf-perturb create BASE OUT --rules transformers)"
        )
    looked = {name: tensor.examine(look=not allow_nonfinite) for name, tensor in checkpoint.tensors.items()}
    _refuse_nonfinite(checkpoint, [name for name, (_, finite) in looked.items() if not finite])
    _check_weights(checkpoint, {name: line for name, (line, _) in looked.items()})
    for note in checkpoint.notes:
        on_note(note)
    with nothing_written(out, (OSError, RuntimeError)):  # torch.save gives a full disk as a RuntimeError
        if to == "transformers":
            return _write_stock_esm(checkpoint, Path(out))
        # what writes `.pt` files needs torch
        from hf_perturb.checkpoints.origins.fair_esm import write_fair_esm
        from hf_perturb.checkpoints.origins.original import Original
        from hf_perturb.checkpoints.origins.sequence_models import write_sequence_models

        write = write_fair_esm if to == "fair-esm" else write_sequence_models
        return write(Original(checkpoint.name, checkpoint.network, checkpoint.tensors, checkpoint.record), Path(out))


def _write_stock_esm(checkpoint: Checkpoint, out: Path) -> tuple[Path, ...]:
    """Write what `transformers.EsmForMaskedLM` or `EsmModel` loads."""
    from hf_perturb.checkpoints.origins.original import Original, cannot, check_class

    network, record = checkpoint.network, checkpoint.record
    original = Original(checkpoint.name, network, checkpoint.tensors)
    if network.family != "fair_esm" or network.version == "ESM-1":
        which = "CARP" if network.family == "carp" else "ESM-1"
        raise cannot(original, "Transformers", f"its ESM has no {which}; allowed: ESM-1b, ESM-1v, ESM-2")
    check_class(original, "Transformers", "FairEsmForMaskedLM", "FairEsmModel")
    tensors, dtypes = dict(checkpoint.tensors), checkpoint.dtypes()
    kind = dtypes["embed_tokens.weight"]
    # a head cannot be left out there; zeros predict 0.5 everywhere, drawn weights would look like a prediction
    whole = network.with_sizes(contact_head=True)
    for name in whole.shapes.keys() - network.shapes.keys():
        tensors[name], dtypes[name] = Tensor.of(np.zeros(whole.shapes[name], np.float32)), kind
    names = stock_names(tensors)
    if network.architecture == "FairEsmModel":
        names = {ours: theirs.removeprefix("esm.") for ours, theirs in names.items()}
    with whole_folder(out, refuse_existing) as folder:
        stored = {names[name]: tensor for name, tensor in tensors.items()}
        kinds = {names[name]: dtype for name, dtype in dtypes.items()}
        # originals are cast as their package does, and so are other bits than the record names
        counted = {name: names[name] for name in checkpoint.tensors}
        _, record = write_weights(folder, stored, kinds, record, counted)
        published, digest = checkpoint.published_as, checkpoint.stored.get("digest")
        ours = checkpoint.configuration(network, record, digest=digest, dtype=kind, published_as=published)
        write_configuration(folder, config_to_stock(ours, network))
        write_companions(checkpoint, folder)
        _write_card(folder, checkpoint, record, digest, published, stock=True)
    return (out,)


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    """Check a checkpoint, and mark what stock Transformers has trained, which keeps our record when it saves."""
    try:
        return checkpoint.check()
    except DigestError:
        record = checkpoint.record
        if record is None or checkpoint.origin != "transformers" or other_records(checkpoint):
            raise
    checkpoint.notes.append(f"its weights are no longer those of {record} (trained since then?): marked as changed")
    checkpoint.record = replace(record, changed=True)
    return checkpoint.check()


def _check_weights(checkpoint: Checkpoint, lines: Mapping[str, str] | None = None) -> None:
    """Raise if weights are not the ones that a checkpoint says they are; what is said of them may be known already."""
    if checkpoint.stated_digest is None and not checkpoint.stated_lines:
        return
    problems = differences(checkpoint, lines or checkpoint.lines())
    if problems and checkpoint.record is None and checkpoint.origin == "transformers":
        checkpoint.notes.append(f"{'; '.join(problems)}: trained since then? the digest is dropped")
        checkpoint.stored.pop("digest", None)
    elif problems:
        raise DigestError(f"{checkpoint.name}: {'; '.join(problems)}: they have changed, or are damaged")


def _refuse_nonfinite(checkpoint: Checkpoint, names: Collection[str]) -> None:
    """Raise, and name them, if there are tensors with NaN or infinite values."""
    if names:
        raise CheckpointError(
            f"{checkpoint.name}: NaN or infinite weights in {listed(names)}; a damaged or diverged network, or a type"
            " too narrow for it; to have it all the same: --allow-nonfinite (allow_nonfinite=True)"
        )
