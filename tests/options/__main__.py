"""Print how many of the options have a case, and what is left out.

``python -m options`` in the folder ``tests``.
"""

from . import LEFT_OUT, TABLE, arguments

known = arguments().keys()
covered, missing = TABLE.keys() & known, known - TABLE.keys() - LEFT_OUT.keys()
share = 100 * len(covered) / len(known)
print(
    f"{len(covered)} of {len(known)} options of {len({name for name, _ in known})} public "
    f"callables have a case: {share:.1f} %"
)
for (name, argument), reason in sorted(LEFT_OUT.items()):
    print(f"left out: {name}({argument}=...): {reason}")
for name, argument in sorted(missing):
    print(f"missing: {name}({argument}=...)")
