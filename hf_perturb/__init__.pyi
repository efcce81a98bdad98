# The public names, and where they are: `__init__.py` imports a module when one of its names is used.
from . import (
    checkpoints as checkpoints,
    demo as demo,
    errors as errors,
    networks as networks,
    perturbation as perturbation,
)
from .compare.compare import (
    Comparison as Comparison,
    compare_checkpoints as compare_checkpoints,
    compare_variants as compare_variants,
)
from .embedding.functions import (
    EmbeddingFunctions as EmbeddingFunctions,
    embedding_functions as embedding_functions,
)
from .embedding.read import read_embeddings as read_embeddings
from .embedding.run import Embeddings as Embeddings, embed as embed, embed_variants as embed_variants
from .errors import (
    CheckpointError as CheckpointError,
    DigestError as DigestError,
    EmbeddingsError as EmbeddingsError,
    FastaError as FastaError,
    FolderExistsError as FolderExistsError,
    FolderLockedError as FolderLockedError,
    HfPerturbError as HfPerturbError,
    HubError as HubError,
    ModelInputError as ModelInputError,
    PerturbationError as PerturbationError,
    RuleError as RuleError,
    ShapeError as ShapeError,
    StackedPerturbationError as StackedPerturbationError,
    StudyError as StudyError,
    UnsupportedModuleError as UnsupportedModuleError,
    UnusedKeywordError as UnusedKeywordError,
)
from .hub.upload import Push as Push, push_variant as push_variant
from .loading.any_checkpoint import from_pretrained as from_pretrained
from .loading.any_model import perturb as perturb
from .loading.wrap import wrap as wrap
from .networks.configuration_carp import CarpConfig as CarpConfig
from .networks.configuration_fair_esm import FairEsmConfig as FairEsmConfig
from .networks.modeling_carp import (
    CarpForMaskedLM as CarpForMaskedLM,
    CarpForSequenceClassification as CarpForSequenceClassification,
    CarpForTokenClassification as CarpForTokenClassification,
    CarpModel as CarpModel,
)
from .networks.modeling_fair_esm import (
    FairEsmForMaskedLM as FairEsmForMaskedLM,
    FairEsmForSequenceClassification as FairEsmForSequenceClassification,
    FairEsmForTokenClassification as FairEsmForTokenClassification,
    FairEsmModel as FairEsmModel,
)
from .perturbation import Perturbation as Perturbation
from .studies.run import study as study
from .variants.convert import (
    Conversion as Conversion,
    convert_checkpoint as convert_checkpoint,
    export_checkpoint as export_checkpoint,
)
from .variants.create import create_variant as create_variant, create_variants as create_variants
from .variants.verify import (
    Verification as Verification,
    verify_variant as verify_variant,
    verify_variants as verify_variants,
)
from .zero_shot.contacts import Contacts as Contacts, contacts as contacts
from .zero_shot.maps import read_contacts as read_contacts
from .zero_shot.score import score as score, substitution_scores as substitution_scores
from .zero_shot.table import NetworkScores as NetworkScores, Scores as Scores

__version__: str
