"""Controls for protein language models: ESM and CARP with weights drawn anew or shuffled.

With this package imported, Transformers' Auto classes know both families. The names of `__init__.pyi` are imported when
they are used: torch and Transformers take seconds, and what works on files needs neither.
"""

# ruff: noqa: E402
from hf_perturb import interrupts

interrupts.watch()  # before anything else takes its time

from typing import Any

import lazy_loader

from hf_perturb.checkpoints.shapes import PREFIXES
from hf_perturb.loading.auto import import_models, register_on_import

__version__ = "0.1.0"

_imported, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    if name.startswith(tuple(PREFIXES.values())) or name in ("from_pretrained", "perturb", "wrap"):
        import_models()
    if name == "study":
        from hf_perturb.studies.options import refuse_without_extra

        refuse_without_extra()
    return _imported(name)


register_on_import()
