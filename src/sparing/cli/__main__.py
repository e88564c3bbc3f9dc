"""`python -m sparing.cli` is `sparing`."""

import sys

from sparing.cli.main import main

sys.exit(main())
