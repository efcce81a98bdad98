"""Every error that this package raises on purpose.

HfPerturbError
├── PerturbationError (ValueError)      a perturbation that is malformed or cannot be applied here
│   ├── RuleError                       a tensor that no rule names, or that two rules name
│   └── StackedPerturbationError        a perturbation asked for on top of another
├── ModelInputError (ValueError)        ids, masks, embeddings or lengths that a model cannot take
├── UnsupportedModuleError (TypeError)  an object that is not a model we know how to wrap or perturb
├── UnusedKeywordError (TypeError)      a keyword that `forward` would not use
├── FastaError (ValueError)             sequences that cannot be read, or that a model cannot take
├── EmbeddingsError (OSError)           a folder of embeddings that is missing, wrong, or of something else
├── StudyError (ValueError)             data or options of a study that do not fit
└── CheckpointError (OSError)           a base or a variant on disk that is missing or wrong
    ├── FolderExistsError               an output folder that is already there
    ├── FolderLockedError               an output folder that another process is writing
    ├── ShapeError (RuntimeError)       tensors of another shape than the network's
    ├── DigestError (ValueError)        weights that are not the ones that the record names
    └── HubError                        a repository on the Hub that cannot be read or written
"""


class HfPerturbError(Exception):
    """Root of the tree: `except HfPerturbError` catches everything that we raise on purpose."""


class PerturbationError(HfPerturbError, ValueError):
    """A perturbation that is malformed or cannot be applied here."""


class RuleError(PerturbationError):
    """A tensor that no rule names, or that two rules name."""


class StackedPerturbationError(PerturbationError):
    """A perturbation asked for on top of another one."""


class ModelInputError(HfPerturbError, ValueError):
    """Ids, masks, embeddings or lengths that a model cannot take."""


class UnsupportedModuleError(HfPerturbError, TypeError):
    """An object that is not a model that we know how to wrap or perturb."""


class UnusedKeywordError(HfPerturbError, TypeError):
    """A keyword that `forward` would not use."""


class FastaError(HfPerturbError, ValueError):
    """Sequences that cannot be read, or that a model cannot take."""


class EmbeddingsError(HfPerturbError, OSError):
    """A folder of embeddings that is missing, wrong, or of something else."""


class StudyError(HfPerturbError, ValueError):
    """Data or options of a study that do not fit."""


class CheckpointError(HfPerturbError, OSError):
    """A base or a variant on disk that is missing or wrong."""


class FolderExistsError(CheckpointError):
    """An output folder that is already there."""


class FolderLockedError(CheckpointError):
    """An output folder that another process is writing."""


class ShapeError(CheckpointError, RuntimeError):
    """Tensors of another shape than the network's, for which Transformers raises a `RuntimeError`."""


class DigestError(CheckpointError, ValueError):
    """Weights that are not the ones that the record names."""


class HubError(CheckpointError):
    """A repository on the Hub that cannot be read or written."""
