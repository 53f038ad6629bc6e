"""`python -m hf_fip` is `hf-fip`."""

import sys

from .cli import main


sys.exit(main())
