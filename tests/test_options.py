"""Every option does what it should: the table of cases, and that none is missing."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from options import LEFT_OUT, TABLE, UNREAD, arguments
from options.compare import same_thing
from options.harness import (
    Case,
    NoEffect,
    differs,
    draws,
    falls,
    rises,
    same,
    seeds,
    shows,
)
from options.walk import keywords

GROUPS = defaultdict(list)
for (callable_, _), cases in TABLE.items():
    GROUPS[callable_].extend(cases)

# nflows 0.14 was written for torch 1.x and calls functions that torch 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning")


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_every_option_of(name):
    failed = []
    for case in GROUPS[name]:
        try:
            case.run()
        except NoEffect as error:
            failed.append(str(error))
    assert not failed, "\n".join(failed)


def test_every_table_can_be_read():
    listed = "\n".join(f"  tests/options/{table}.py: {why}" for table, why in UNREAD.items())
    assert not UNREAD, f"what these tables name was renamed or moved:\n{listed}"


def test_every_option_has_a_case():
    missing = sorted(arguments().keys() - TABLE.keys() - LEFT_OUT.keys())
    listed = "\n".join(f"  {name}({argument}=...)" for name, argument in missing)
    assert not missing, (
        f"{len(missing)} options have no case. Say in tests/options/ what changing each of them "
        f"must change (or must not), or enter it as left out with the reason:\n{listed}"
    )


def test_no_case_is_of_an_option_that_is_gone():
    known = arguments().keys() | arguments(everything=True).keys()
    gone = sorted((TABLE.keys() | LEFT_OUT.keys()) - known)
    listed = "\n".join(f"  {name}({argument}=...)" for name, argument in gone)
    assert not gone, f"tests/options/ has cases of options that are gone or renamed:\n{listed}"


def test_at_least_95_percent_of_the_options_have_a_case():
    known = arguments().keys()
    assert len(TABLE.keys() & known) >= 0.95 * len(known)


def test_options_with_a_case_are_not_left_out_as_well():
    assert not TABLE.keys() & LEFT_OUT.keys()


# The harness itself, on functions whose options are known to work or not --------------------


def scaled(x=1.0, factor=2.0, ignored=0.0, *, generator=None, seed=None):
    """A function with options that work, and one that does nothing."""
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
    return factor * x + torch.rand((), generator=generator)


def careless(seed=0):
    """A function that seeds the global generator instead of one of its own."""
    torch.manual_seed(seed)
    return torch.rand(())


def fails(expectation, argument, see=scaled, target=scaled):
    with pytest.raises(NoEffect) as caught:
        Case("scaled", argument, target, see, expectation).run()
    return str(caught.value)


def holds(expectation, argument, see=scaled, target=scaled):
    Case("scaled", argument, target, see, expectation).run()


def test_an_option_that_is_ignored_fails_where_it_should_differ():
    text = fails(differs(1.0), "ignored")
    assert text == "scaled(ignored=...): 1.0 gives the same as the default"
    holds(same("it is ignored", 1.0), "ignored")


def test_an_option_with_an_effect_fails_where_it_should_have_none():
    holds(differs(3.0, 4.0), "factor")
    assert "does not give the same" in fails(same("it scales", 3.0), "factor")


def test_values_that_do_the_same_as_each_other_fail():
    assert "3.0 gives the same as 3.0" in fails(differs(3.0, 3.0), "factor")


def test_an_effect_of_the_size_of_rounding_is_none():
    assert "gives the same" in fails(differs(2.0 + 1e-6), "factor")
    holds(differs(2.0 + 1e-3), "factor")


def test_the_stated_direction_is_checked():
    holds(rises(3.0, 4.0), "factor")
    holds(falls(1.0, 0.0), "factor")
    assert "not more than" in fails(rises(1.0), "factor")
    assert "not less than" in fails(falls(1.0, 3.0), "factor")


def test_chance_does_not_pass_for_an_effect():
    numbers = iter(range(100))
    text = fails(differs(1.0), "ignored", lambda **o: scaled(**o) + next(numbers))
    assert "chance" in text


def test_a_value_that_does_not_arrive_under_its_name_fails():
    assert "never arrived" in fails(differs(3.0), "factor", lambda factor=2.0: factor)
    assert "never arrived" in fails(differs(3.0), "x", lambda x=1.0: scaled(factor=x))


def test_what_is_to_be_seen_must_not_be_seen_without_the_option():
    holds(shows(lambda value: value > 5, 9.0), "factor")
    assert "is seen with the default too" in fails(shows(lambda value: value > 0, 9.0), "factor")


def test_a_generator_must_decide_alone_and_leave_the_global_state():
    holds(draws(), "generator")
    assert "has a part" in fails(
        draws(), "generator", lambda generator: scaled(generator=generator) + scaled()
    )
    assert "global random state" in fails(
        draws(), "generator", lambda generator: (scaled(), scaled(generator=generator))[1]
    )


def test_a_seed_must_decide_alone_and_leave_the_global_state():
    holds(seeds(), "seed")
    text = fails(seeds(), "seed", careless, careless)
    assert "the global random state is another one afterwards" in text


def test_numbers_differ_by_shape_dtype_and_what_is_not_finite():
    one = torch.tensor([1.0, torch.nan, torch.inf])
    assert same_thing(one, one.clone())
    assert not same_thing(one, one.double())
    assert not same_thing(one, one[:2])
    assert not same_thing(one, torch.tensor([1.0, torch.inf, torch.nan]))
    assert not same_thing(one, torch.tensor([1.0, torch.nan, -torch.inf]), 1.0)
    assert not same_thing({"a": 1}, {"b": 1})
    assert same_thing([np.float64(1), "a", None], [np.float64(1), "a", None])


def test_the_walk_finds_defaults_keyword_only_arguments_and_collections():
    def function(a, b=1, *, c, **rest):
        return a, b, c, rest

    assert keywords(function) == ["b", "c", "rest"]
