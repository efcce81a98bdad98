# The names of this package, and where they are; see `__init__.pyi` one folder up.
from .from_pretrained import config_from_stock as config_from_stock, load_model as load_model
from .perturb import (
    model_class as model_class,
    model_of as model_of,
    network_of as network_of,
    perturb_model as perturb_model,
    record_as as record_as,
    record_now as record_now,
)
from .saving import save_model as save_model
