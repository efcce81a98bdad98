"""`python -m hf_perturb`."""

import sys

from hf_perturb.cli import main

sys.exit(main())
