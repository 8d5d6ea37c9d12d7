"""Genotypes and phenotypes of heterogeneous stock mice, which a system package brings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowkit.datasets.packaged import as_table, read_lines
from flowkit.errors import DataError

#: Where the Debian package ``gemma-doc`` puts its files.
DEBIAN_FOLDER = Path("/usr/share/doc/gemma/example")
_STEM = "mouse_hs1940"
_OWNER = "heterogeneous_stock_mice"
_REMEDY = "apt install gemma-doc, or give the folder of the files with folder="


@dataclass(frozen=True)
class Mice:
    """Related mice with their genotypes.

    Attributes:
        genotypes: Doses ``(n, M)`` of the first allele of each marker, 0 to 2 and partly imputed
            by whoever made the file; float32. What is missing is the mean of the marker.
        phenotypes: ``(n, 6)`` in float64, NaN where missing.
        families: A code of the family of each mouse.
        parents: Codes of the two parents of each mouse.
        markers: Name of each marker.
        chromosomes: Chromosome of each marker, as ``"17"``.
        positions: ``(M,)``, in base pairs, float64, NaN where not known.
    """

    genotypes: Tensor
    phenotypes: Tensor
    families: tuple[str, ...]
    parents: tuple[tuple[str, str], ...]
    markers: tuple[str, ...]
    chromosomes: tuple[str, ...]
    positions: Tensor

    def kinship(self) -> Tensor:
        r"""The genomic relationship of the mice, ``(n, n)`` in float64.

        :math:`Z Z^T / M` of the standardised markers Z, without constant ones, scaled to a unit
        diagonal from both sides.
        """
        doses = self.genotypes.double()
        spread = doses.std(0, correction=0)
        seen = spread > 1e-6
        standard = (doses[:, seen] - doses[:, seen].mean(0)) / spread[seen]
        standard = standard / standard.norm(dim=1, keepdim=True)
        related = standard @ standard.mT
        return related.fill_diagonal_(1.0)


def heterogeneous_stock_mice(folder: str | os.PathLike[str] | None = None) -> Mice:
    """Load 1,940 mice of a heterogeneous stock: 12,226 markers, six phenotypes, 85 families.

    The demonstration of GEMMA calls the first phenotype CD8 and the last MCH. The second is the
    first for 757 mice, the third for 653 others, on which predictions from the former are tested;
    the fourth and fifth are 0 or 1, "binary traits" of the same two groups. Both quantitative
    phenotypes come close to standard normal: someone has normalised them. 1,410 mice have CD8,
    1,580 MCH, and 1,197 both.

    Args:
        folder: Where ``mouse_hs1940.geno.txt.gz``, ``.pheno.txt.gz``, ``.anno.txt.gz`` and
            ``.fam.gz`` are; by default where the Debian package ``gemma-doc`` puts them.

    Raises:
        MissingDependencyError: If a file is not there.
        DataError: If one is damaged, or they differ in their mice or markers.

    References:
        Valdar et al. 2006, Nat. Genet. 38, 879, for the mice; Zhou, Stephens 2012, Nat. Genet. 44,
        821, for GEMMA.

    Example:
        >>> from flowkit.datasets import heterogeneous_stock_mice
        >>> mice = heterogeneous_stock_mice()  # doctest: +SKIP
        >>> mice.genotypes.shape  # doctest: +SKIP
        torch.Size([1940, 12226])
    """
    base = Path(DEBIAN_FOLDER if folder is None else folder)
    phenotypes = as_table(_OWNER, _words(base, "pheno.txt.gz"), "phenotypes")
    about = _words(base, "fam.gz")
    notes = {words[0]: words for words in _words(base, "anno.txt.gz")}
    table = _words(base, "geno.txt.gz")
    names = tuple(words[0] for words in table)
    doses = as_table(_OWNER, [words[3:] for words in table], "genotypes").T
    same = len(doses) == len(phenotypes) == len(about)
    if not same or any(len(words) < 4 for words in about):
        raise DataError(
            f"{_OWNER} expected the same mice in all files of {base}, got "
            f"{len(doses)} in geno, {len(phenotypes)} in pheno and {len(about)} in fam; remedy: "
            "fetch the package anew"
        )
    lost = [name for name in names if len(notes.get(name, ())) < 3]
    if lost:
        raise DataError(
            f"{_OWNER} expected every marker in {_STEM}.anno.txt.gz, got none for "
            f"{len(lost)}, as {lost[0]}; remedy: fetch the package anew"
        )
    missing = np.isnan(doses)
    if missing.any():
        known = np.maximum((~missing).sum(0), 1)
        mean = np.where(missing, 0.0, doses).sum(0) / known
        doses = np.where(missing, mean, doses)
    positions = as_table(_OWNER, [[notes[name][1]] for name in names], "positions")[:, 0]
    return Mice(
        torch.from_numpy(np.ascontiguousarray(doses)).float(),
        torch.from_numpy(phenotypes),
        tuple(words[0] for words in about),
        tuple((words[2], words[3]) for words in about),
        names,
        tuple(notes[name][2] for name in names),
        torch.from_numpy(positions.copy()),
    )


def _words(base: Path, ending: str) -> list[list[str]]:
    """The words of each line, which commas or spaces separate."""
    lines = read_lines(_OWNER, base / f"{_STEM}.{ending}", _REMEDY)
    return [line.replace(",", " ").split() for line in lines]
