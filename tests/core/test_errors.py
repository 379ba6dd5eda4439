"""Errors say what, where and what to do, keep their facts, and survive pickling."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetcache_core import errors
from hetcache_core.errors import (
    NOT_GIVEN,
    CacheBudgetError,
    CacheStateError,
    ConfigError,
    ContractError,
    HetCacheError,
    NonFiniteError,
    PipelineBusyError,
    PluginConflictError,
    PluginError,
    PluginLoadError,
    RunCancelledError,
    UnsupportedBackboneError,
    nearest_name,
)

EXAMPLES = [
    HetCacheError("it broke", where="step 3", remedy="Mend it."),
    ConfigError(
        "ratio must be <= 1, got 3",
        where="policy hetcache",
        remedy="Choose a share.",
        setting="ratio",
        given=3,
        allowed=["<= 1"],
        nearest="ratio",
    ),
    PluginError("implements no hook", plugin="nth", distribution="hetcache-nth 1.0"),
    PluginConflictError(
        "policy 'x' is provided twice", kind="policy", name="x", distributions=["a 1", "b 2"]
    ),
    PluginLoadError(
        "cannot import",
        plugin="nth",
        distribution="hetcache-nth 1.0",
        target="nth.plugin",
        failed=["nth"],
    ),
    UnsupportedBackboneError(
        "diffsynth is not installed",
        backbone="wan-vace",
        option="sliding_window",
        pip="pip install hetcache[diffsynth]",
    ),
    ContractError("decide() changed the policy", subject="NthStep", check="check_frozen"),
    CacheStateError("nothing is stored", key="trunk", branch="cond", step=3, expected_step=2),
    CacheBudgetError("too large", needed_bytes=8, held_bytes=4, budget_bytes=10, key="trunk"),
    NonFiniteError("the latents hold NaN", first_step=3, steps=8),
    PipelineBusyError(pipeline="WanVACEPipeline"),
    RunCancelledError(steps_done=2, steps=4, run_id="a-1"),
]


def test_there_is_an_example_of_every_error() -> None:
    classes = {
        member
        for _, member in inspect.getmembers(errors, inspect.isclass)
        if issubclass(member, Exception) and not issubclass(member, Warning)
    }
    assert {type(example) for example in EXAMPLES} == classes


def test_every_public_name_is_exported_and_drawn_in_the_tree() -> None:
    assert errors.__doc__ is not None
    for example in EXAMPLES:
        assert type(example).__name__ in errors.__all__
        assert type(example).__name__ in errors.__doc__


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling_with_its_facts(error: HetCacheError, protocol: int) -> None:
    twin = pickle.loads(pickle.dumps(error, protocol))
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert str(twin) == str(error)
    assert twin.args == error.args


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_copying_with_its_facts(error: HetCacheError) -> None:
    for twin in (copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_every_error_is_a_hetcache_error_with_a_message_of_one_line(error: HetCacheError) -> None:
    assert isinstance(error, HetCacheError)
    assert error.what in str(error)
    assert error.where in str(error)
    assert error.remedy in str(error)
    assert "\n" not in str(error)


def test_the_message_says_where_what_and_remedy_in_this_order() -> None:
    assert str(EXAMPLES[0]) == "step 3: it broke. Mend it."
    assert str(HetCacheError("it broke")) == "it broke"
    assert str(HetCacheError("It broke.", remedy="Mend it.")) == "It broke. Mend it."
    assert str(HetCacheError("did it break?", remedy="Mend it.")) == "did it break? Mend it."


def test_a_config_error_without_a_value_tells_that_from_the_value_none() -> None:
    assert ConfigError("missing").given is NOT_GIVEN
    assert ConfigError("wrong", given=None).given is None
    assert pickle.loads(pickle.dumps(ConfigError("missing"))).given is NOT_GIVEN
    assert repr(NOT_GIVEN) == "NOT_GIVEN"


def test_a_plugin_error_names_plugin_and_distribution() -> None:
    error = PluginError("implements no hook", plugin="nth", distribution="hetcache-nth 1.0")
    assert str(error) == "plugin 'nth' (distribution hetcache-nth 1.0): implements no hook"
    assert str(PluginError("it broke", plugin="nth")) == "plugin 'nth': it broke"
    assert str(PluginError("it broke", where="here", plugin="nth")) == "here: it broke"


def test_a_missing_library_comes_with_the_command_that_installs_it() -> None:
    error = UnsupportedBackboneError(
        "diffsynth is not installed", backbone="wan-vace", pip="pip install hetcache[diffsynth]"
    )
    assert str(error) == (
        "backbone 'wan-vace': diffsynth is not installed. Run: pip install hetcache[diffsynth]"
    )


def test_a_contract_error_names_the_subject_and_the_check() -> None:
    error = ContractError("decide() changed it", subject="NthStep", check="check_frozen")
    assert str(error) == "NthStep, check_frozen: decide() changed it"


def test_an_error_of_a_subclass_with_other_arguments_survives_pickling() -> None:
    twin = pickle.loads(pickle.dumps(_ThirstyError(3)))
    assert isinstance(twin, _ThirstyError)
    assert twin.glasses == 3
    assert str(twin) == "needs 3 glasses"


class _ThirstyError(ConfigError):
    def __init__(self, glasses: int) -> None:
        super().__init__(f"needs {glasses} glasses")
        self.glasses = glasses


def test_the_nearest_name_ignores_case_and_is_none_when_nothing_is_close() -> None:
    assert nearest_name("HetCahe", ["hetcache", "teacache"]) == "hetcache"
    assert nearest_name("kv_mode", ["KV_MODE"]) == "KV_MODE"
    assert nearest_name("zzz", ["hetcache"]) is None
    assert nearest_name("hetcache", []) is None


@given(st.sets(st.text(min_size=1)), st.text())
def test_the_nearest_name_is_always_a_known_one(known: set[str], name: str) -> None:
    assert nearest_name(name, known) in {None, *known}
