"""The options of flowkit: for every keyword argument, what it must change, or must not.

``harness`` says what a case is, ``walk`` finds the arguments, and the tables hold the cases, one
module per part of the package. What has no case there gets one of ``registered``, from its entry
in ``tests/registry.py``. ``python -m options`` in ``tests`` prints how many are covered.
"""

import importlib

from .harness import LEFT_OUT, TABLE
from .walk import arguments

TABLES = (
    "bases",
    "cli",
    "conditioners",
    "contract",
    "datasets",
    "dependence",
    "energies",
    "estimators",
    "flow",
    "interop",
    "mixture",
    "objectives",
    "plotting",
    "recipes",
    "scalar",
    "statistics",
    "support",
    "toys",
    "training",
    "transforms",
)

# Tables of what was renamed or moved: the others are read all the same.
UNREAD: dict[str, str] = {}
for table in TABLES:
    try:
        importlib.import_module(f".{table}", __name__)
    except (ImportError, AttributeError) as error:
        UNREAD[table] = str(error)

importlib.import_module(".registered", __name__).enter()

__all__ = ["LEFT_OUT", "TABLE", "UNREAD", "arguments"]
