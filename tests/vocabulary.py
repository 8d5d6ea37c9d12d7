r"""Expressions that readers would have to translate: ``python tests/vocabulary.py``.

The left column of the glossary, as regular expressions. None may occur in code, messages, docs or
README; the remedy stands beside each. Run by ``make lint``.
"""

# ruff: noqa: E501
from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WHERE = (
    "flowkit/**/*.py", "examples/**/*.py", "docs/*.md", "docs/api/*.md", "docs/results/*.md",
    "README.md", "CONTRIBUTING.md", "SECURITY.md",
)  # fmt: skip

UNIT = (
    r"(batch|bin|call|cell|channel|column|component|core|coordinate|dimension|draw|epoch|event|family|"
    r"feature|fit|group|index|kernel|layer|map|model|number|observation|parameter|part|pixel|point|"
    r"process|row|sample|scalar|second|side|split|step|sweep|tail|tensor|unit|variable)"
)
#: Expression and what to write instead.
EXPRESSIONS: dict[str, str] = {
    # "per", not "a"
    rf"\bone \w+ an? {UNIT}\b": "one ... per ...",
    rf"\b(two|three|four|\d+) \w+ an? {UNIT}\b": "... per ...",
    rf"\b(numbers?|names?|times|booleans?|parameters?|seconds|milliseconds|bits|nats|passes|draws) an? {UNIT}\b": "... per ...",
    rf"\b\d+ (s|ms|MB|GB) an? {UNIT}\b": "... per ...",
    rf"\b(once|twice) an? {UNIT}\b": "once per ...",
    rf"\bby an? \w+ an? {UNIT}\b": "by ... per ...",
    # numbers
    r"\bwhole[- ]numbers?\b": "integer",
    r"\bnoughts?\b": "zero",
    r"\blikeliest\b": "maximum-likelihood, most likely",
    r"\bthe (largest|least|most) number of passes\b": "the maximum number of epochs",
    r"\bpasses over the (rows|data)\b": "epochs",
    # features that a coupling transforms, and those that condition it
    r"\b(features?|coordinates?|columns?|numbers?) that (move|moves|stay|stays)\b": "transformed / conditioning features",
    r"\b(moved|moving|staying|fixed) features?\b": "transformed / conditioning features",
    r"\b[Mm]oves? (the|every|each|all) (masked |other )?features?\b": "transform the features",
    r"\bwhat stays\b": "the conditioning features, what is unchanged",
    # alternation and rotation
    r"\bin (its|their|his) turns?\b": "alternately, one after the other",
    r"\b(takes?|taking|take) turns\b": "alternate",
    r"\b(its|their|a) turn\b": "alternate, step, revolution",
    r"\bturns? by turns?\b": "alternately",
    r"\b(features|order|halves|features') (is |are )?turned\b": "permuted, reversed",
    # the network-only baseline
    r"\bbare networks?\b": "network-only baseline",
    r"\b(near|beside|over|to|of|times|than|from) the limit\b": "the network-only baseline",
    # covariances
    r"\b(the|its|their|a|of|fit) strengths?\b": "correlation parameter",
    r"\bvariance shares?\b|\bshares? of (the )?variance\b": "variance proportion",
    # geometry
    r"\bcircles, (intervals|lines)\b|\blines, (intervals|circles)\b|\bintervals, (lines|circles)\b": "periodic, bounded and real variables",
    r"\b(on|of|to|from|onto) (the |a )?lines?,? (an )?intervals?\b": "real and bounded variables",
    r"\b(on|of) circles\b|\b(feature|angle|variable|number)s? (on|of) a circle\b": "periodic",
    r"\bfrom the line\b|\bto the line\b|\bon the line\b|\bthe whole line\b": "the real line",
    # the package
    r"\b(rooms?|doors?)\b": "package, module, interface",
    r"\bhouse\b": "package",
    r"\bfaces? (of|for|to) (flowkit|scikit|the package)|\bscikit-learn faces?\b": "interface",
    r"\bstrangers?\b(?!-)": "other users, untrusted",
    # verbs that say nothing
    r"\b(is|was|are|were|be) asked (for|of|to)\b": "is requested, expected",
    r"\bthat was asked\b": "requested",
    r"\b(is|are|be) worth\b": "equals, pays",
    r"\b(layer|flow|map|class|base|transform|module|function|object|network|conditioner)s? knows?\b": "has, stores, computes",
    r"\b(the|all|be) (wanted|kept|found) (ones?|numbers?|values?)\b": "solved, stored, expected",
    r"\bmend(s|ed|ing)?\b": "fix, correct",
    # spellings and names that went
    r"\bcolours?\b|\bcoloured\b": "color",
    r"\b(Chart|Grouped|ExtremeValue|FitStrength|GroupedPart|Sealed)\b(?!P)": "Rescale, GroupedConditioner, TailTransform, UpdateCovariance",
    r"\bwaves\b|\bhighest=": "n_frequencies, max_frequency",
    r"\b(Box|Activation)\(": "Rescale, Elementwise",
    r"\benergy_based_flow\b|\bScoreMatching\((\"|')": "dense_flow, conv_flow, glow_flow; SlicedScoreMatching, ...",
    r"\bRecipeError\b": "ArgumentError",
}


def hits(root: Path = ROOT) -> list[tuple[str, int, str, str]]:
    """File, line, found text and remedy of every expression that occurs."""
    compiled = [(re.compile(pattern), remedy) for pattern, remedy in EXPRESSIONS.items()]
    found = []
    for pattern in WHERE:
        for path in sorted(root.glob(pattern)):
            text = path.read_text()
            # Sentences go on over line ends, also those of comments and strings.
            joined = re.sub(
                r'(?<=[^\n])(\n[ \t#]*(?=[^\s#])|"\n[ \t]*f?r?")', lambda m: " " * len(m[0]), text
            )
            for expression, remedy in compiled:
                for match in expression.finditer(joined):
                    line = text.count("\n", 0, match.start()) + 1
                    words = " ".join(match[0].split())
                    found.append((str(path.relative_to(root)), line, words, remedy))
    return sorted(set(found))


def main() -> int:
    """Print what occurs; the exit code is 1 if anything does."""
    found = hits()
    for file, line, words, remedy in found:
        print(f"{file}:{line}: {words!r}: write {remedy}")
    if found:
        print(f"{len(found)} expressions of the glossary's left column")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
