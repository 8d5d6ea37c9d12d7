"""Data to learn on without a download: photographs, images, stocks, genotypes, small tables.

Random choices follow the ``seed`` of each call; the global random state is never touched. Heavy
packages are imported only by the loader that needs them.
"""

from flowkit.datasets.images import fashion_mnist
from flowkit.datasets.mice import heterogeneous_stock_mice
from flowkit.datasets.patches import photograph_patches
from flowkit.datasets.photos import photograph_colors
from flowkit.datasets.stocks import stock_returns
from flowkit.datasets.tables import breast_cancer, diabetes, digits, magic, wine

__all__ = [
    "breast_cancer",
    "diabetes",
    "digits",
    "fashion_mnist",
    "heterogeneous_stock_mice",
    "magic",
    "photograph_colors",
    "photograph_patches",
    "stock_returns",
    "wine",
]
