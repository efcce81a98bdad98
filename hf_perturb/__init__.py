"""Controls for protein language models: ESM and CARP with re-initialised or shuffled weights.

Importing this package registers both families with Transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from hf_perturb import demo
from hf_perturb.checkpoints.convert import Conversion, convert_checkpoint
from hf_perturb.checkpoints.exports import export_checkpoint
from hf_perturb.checkpoints.variants import create_variant
from hf_perturb.errors import (
    CheckpointError,
    DigestError,
    FolderExistsError,
    HfPerturbError,
    ModelInputError,
    PerturbationError,
    RuleError,
    StackedPerturbationError,
    UnsupportedModuleError,
)
from hf_perturb.models.configuration_carp import CarpConfig
from hf_perturb.models.configuration_fair_esm import FairEsmConfig
from hf_perturb.models.modeling_carp import (
    CarpForMaskedLM,
    CarpForSequenceClassification,
    CarpForTokenClassification,
    CarpModel,
)
from hf_perturb.models.modeling_fair_esm import (
    FairEsmForMaskedLM,
    FairEsmForSequenceClassification,
    FairEsmForTokenClassification,
    FairEsmModel,
)
from hf_perturb.models.perturbable import perturb
from hf_perturb.models.wrapping import wrap
from hf_perturb.perturbation import Perturbation

__version__ = "0.1.0"

_HEADS = {
    AutoModel: (FairEsmModel, CarpModel),
    AutoModelForMaskedLM: (FairEsmForMaskedLM, CarpForMaskedLM),
    AutoModelForSequenceClassification: (FairEsmForSequenceClassification, CarpForSequenceClassification),
    AutoModelForTokenClassification: (FairEsmForTokenClassification, CarpForTokenClassification),
}

for _config in (FairEsmConfig, CarpConfig):
    AutoConfig.register(_config.model_type, _config)
for _auto, _models in _HEADS.items():
    for _model in _models:
        _auto.register(_model.config_class, _model)

__all__ = [
    "CarpConfig",
    "CarpForMaskedLM",
    "CarpForSequenceClassification",
    "CarpForTokenClassification",
    "CarpModel",
    "CheckpointError",
    "Conversion",
    "DigestError",
    "FairEsmConfig",
    "FairEsmForMaskedLM",
    "FairEsmForSequenceClassification",
    "FairEsmForTokenClassification",
    "FairEsmModel",
    "FolderExistsError",
    "HfPerturbError",
    "ModelInputError",
    "Perturbation",
    "PerturbationError",
    "RuleError",
    "StackedPerturbationError",
    "UnsupportedModuleError",
    "__version__",
    "convert_checkpoint",
    "create_variant",
    "demo",
    "export_checkpoint",
    "perturb",
    "wrap",
]
