"""What a study is asked for. Nothing heavy is imported: the command line reads this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_perturb.embedding.options import POOLS, EmbedOptions
from hf_perturb.errors import StudyError

METHODS = ("reinit", "resample")  # of the controls that nobody named
SEEDS = ("0-4",)
PROBES = ("ridge", "logistic", "knn")
SAVED = ("h5",)

# called with what is being done, how much of it is done, and how much there is to do
Progress = Callable[[str, int, int], object]
# what is imported, by extra
_NEEDED = {"study": ("scipy", "threadpoolctl", "sklearn", "pyarrow", "dnaio", "matplotlib"), "h5": ("h5py",)}
# options of `embed` that a study sets itself
_OWN = ("layers", "pool", "per_residue", "residues", "force", "progress")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """The options of `study`, beside those of `embed` that say how sequences are read and networks are run.

    Args:
        target: column of the data with what is to be predicted, if there are several.
        labels: file with what is to be predicted, if the data is a FASTA without: by id (CSV, TSV), or label strings.
        mask: FASTA of 0 and 1 that says which residues have a label.
        task: `"regression"`, `"binary"` or `"classes"`, where the data does not tell.
        skip_bad: leave out rows that cannot be used, and count them; else they are an error.
        split: `"column"`, `"cluster:FILE"`, `"kfold:5"` or `"cluster:0.3"`; the data's own if `None`.
        layers: as for `embed`: `"all"`, `"last"` or numbers.
        pool: of the residues of a protein: `"mean"`, `"max"` or `"cls"`.
        probe: `"ridge"`, `"logistic"` or `"knn"`; ridge for a regression and logistic for classes if `None`.
        metrics: the first is the main one, by which strengths and layers are chosen; all of the task if none.
        baselines: whether plain baselines are probed too.
        max_residues: of a residue task, most residues to train and validate with, and most to test with; they are
            sampled within proteins.
        resamples: of the test proteins, for the intervals.
        seed: of folds, samples and resamples; those of the controls are their own.
        embeddings: a folder of embeddings as `embed` writes it, with base and controls, to use in place of new ones.
        save_embeddings: `"h5"`: keep the vectors of all residues, as HDF5 for biotrainer, in the folder `h5`.
        zero_shot: the wild type, a FASTA or its sequence: score the proteins as its mutants, without a probe, too.
        force: if the folder holds another study, replace it.
        progress: called with a phase, how much of it is done, and how much there is.
    """

    target: str | None = None
    labels: str | Path | None = None
    mask: str | Path | None = None
    task: str | None = None
    skip_bad: bool = False
    split: str | None = None
    layers: str | int | Sequence[int] = "all"
    pool: str = "mean"
    probe: str | None = None
    metrics: str | Sequence[str] = ()
    baselines: bool = True
    max_residues: int = 20_000
    resamples: int = 2_000
    seed: int = 0
    embeddings: str | Path | None = None
    save_embeddings: str | None = None
    zero_shot: str | Path | None = None
    force: bool = False
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if isinstance(self.metrics, str):
            object.__setattr__(self, "metrics", (self.metrics,))
        if not isinstance(self.layers, str | int):
            # numbers of numpy are no JSON
            numbers = (int(each) if hasattr(each, "__index__") else each for each in self.layers)
            object.__setattr__(self, "layers", list(numbers))
        for name, allowed in (("probe", (None, *PROBES)), ("save_embeddings", (None, *SAVED)), ("pool", POOLS)):
            if (got := getattr(self, name)) not in allowed:
                raise StudyError(f"{name}: got {got!r}; allowed: {', '.join(filter(None, allowed))}")
        for name, least in (("max_residues", 100), ("resamples", 100), ("seed", 0)):
            got = getattr(self, name)
            if not isinstance(got, int) or isinstance(got, bool) or got < least:
                raise StudyError(f"{name}: got {got!r}; allowed: a number of at least {least}")
        if self.embeddings is not None and self.save_embeddings is not None:
            raise StudyError("save_embeddings: not with embeddings, which are there; give one of the two")

    def to_dict(self) -> dict[str, Any]:
        """Return what decides the results, but for the data, as JSON."""
        names = ("probe", "baselines", "max_residues", "resamples", "seed", "pool", "save_embeddings")
        layers = self.layers if isinstance(self.layers, str | int) else list(self.layers)
        return {"layers": layers, "metrics": list(self.metrics), **{name: getattr(self, name) for name in names}}


def refuse_without_extra(extra: str = "study") -> None:
    """Raise if what a study needs is not installed.

    Args:
        extra: `study`, or `h5` where HDF5 is to be written.

    Raises:
        StudyError: naming the first of it.
    """
    for name in _NEEDED[extra]:
        try:
            import_module(name)
        except ImportError as error:
            raise StudyError(f"a study needs {name} ({error}): pip install 'hf-perturb[{extra}]'") from error


def divide_options(given: dict[str, Any]) -> tuple[StudyOptions, dict[str, Any]]:
    """Return the options of a study, and those that are for `embed`.

    Raises:
        TypeError: if there is no such option.
    """
    own = {each.name for each in fields(StudyOptions)}
    others = {each.name for each in fields(EmbedOptions)} - {*_OWN}
    if unknown := given.keys() - own - others:
        raise TypeError(f"study: got {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(own | others))}")
    options = StudyOptions(**{name: value for name, value in given.items() if name in own})
    return options, {name: value for name, value in given.items() if name in others}
