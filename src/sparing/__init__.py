"""sparing: the same AI work with less compute, less memory and less trust in the hardware.

Each system is a sub-package that is imported on its own, for example ``from sparing.hybrid import HybridIndex``.
"""

import logging

from sparing.errors import SparingError

__version__ = "0.1.0"

__all__ = ["SparingError", "__version__"]

# A library does not own the process's logging: silent until the application configures a handler.
logging.getLogger("sparing").addHandler(logging.NullHandler())
