# The names of this package, and where they are; see `__init__.pyi` one folder up.
from .digest import digest_of as digest_of
from .plan import (
    Plan as Plan,
    Step as Step,
    make_plan as make_plan,
    named as named,
    select as select,
)
from .rules import (
    FAMILIES as FAMILIES,
    default_axis as default_axis,
)
from .scopes import (
    cascade as cascade,
    depth_of as depth_of,
    scope_text as scope_text,
)
from .spec import (
    Base as Base,
    Perturbation as Perturbation,
)
