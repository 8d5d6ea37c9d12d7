"""Every Python block of the documentation runs as printed, and a block that does not is named."""

import inspect
import re
import sys
from pathlib import Path

import pytest
from options.walk import public_objects

DOCS = Path(__file__).parent.parent / "docs"
sys.path.insert(0, str(DOCS))

import run_snippets  # noqa: E402


@pytest.mark.slow
@pytest.mark.parametrize("page", run_snippets.pages(), ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page):
    assert run_snippets.run(page) == ""


def test_all_kinds_of_blocks_are_found():
    names = {page.name for page in run_snippets.pages()}
    assert {"README.md", "quickstart.md", "contract.md"} <= names
    # Fences of the console, and directives of sphinx, are none.
    for page in run_snippets.pages():
        text = page.read_text()
        fences = text.count("```python\n") + text.count("```{code-cell} python\n")
        assert len(list(run_snippets.blocks(page))) == fences, page.name


def test_options_that_the_text_names_exist():
    known = {"dynamic", "fullgraph", "precision"}  # of torch.compile and Fabric
    for part in public_objects(everything=True):
        if inspect.isclass(part) and issubclass(part, Exception):
            continue
        methods = vars(part).values() if inspect.isclass(part) else ()
        for function in (part, *filter(inspect.isfunction, methods)):
            known |= inspect.signature(function).parameters.keys()
    for page in (*DOCS.rglob("*.md"), DOCS.parent / "README.md"):
        text = re.sub("```.*?```", "", page.read_text(), flags=re.DOTALL)
        for code in re.findall("`([^`\n]+)`", text):
            unknown = set(re.findall(r"\b([a-z_]+)=(?!=)", code)) - known
            assert not unknown, f"{page.name}: `{code}`"


PAGE = """# A page

```python
first = 1
```

```console
$ not python
```

```{code-cell} python
:tags: [remove-cell]
print(first)
```

- a list

  ```python
  class Second:
      value = first + 1
  assert Second.__module__ == "__main__"
  ```
"""


def test_blocks_of_a_page_are_one_program(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert [lines for lines, _ in run_snippets.blocks(page)] == [3, 12, 18]
    assert run_snippets.run(page) == ""


@pytest.mark.parametrize(
    ("block", "line", "error"),
    [
        ("first = 1\nsecond = unknown", 5, "NameError: name 'unknown'"),
        ("import warnings\n\nwarnings.warn('old')", 6, "UserWarning: old"),
        ("1 +", 4, "SyntaxError"),
    ],
)
def test_a_block_that_fails_is_named_by_page_and_line(tmp_path, block, line, error):
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```python\n{block}\n```\n")
    told = run_snippets.run(page)
    assert error in told
    assert f'{page}", line {line}' in told
