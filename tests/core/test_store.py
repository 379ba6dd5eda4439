"""The store keeps tensors by branch and slot, and its byte count is the truth."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hetcache_core import CacheBudgetError, CacheStateError, CacheStore, ConfigError, StoreSettings
from hetcache_core.steps import BlockKey, Span, Stack, SubLayer
from hetcache_core.store import Kind, Slot, Stored, with_rows

RESIDUAL = Slot(Kind.RESIDUAL, Span())
KEYS = Slot(Kind.KEYS, BlockKey(Stack.MAIN, 0))
SUB_LAYER = Slot(Kind.SUB_LAYER, BlockKey(Stack.MAIN, 0), SubLayer.FEED_FORWARD)


def tokens(fill: float = 1.0, *, rows: int = 4) -> torch.Tensor:
    return torch.full((1, rows, 2), float(fill))


def newest(store: CacheStore, branch: str, slot: Slot) -> torch.Tensor:
    return store.get(branch, slot, like=tokens())[-1].value


def test_branches_and_slots_are_kept_apart() -> None:
    store = CacheStore()
    store.put("cond", RESIDUAL, tokens(1), step=0)
    store.put("uncond", RESIDUAL, tokens(2), step=0)
    store.put("cond", SUB_LAYER, tokens(3), step=0)
    assert newest(store, "cond", RESIDUAL)[0, 0, 0] == 1
    assert newest(store, "uncond", RESIDUAL)[0, 0, 0] == 2
    assert newest(store, "cond", SUB_LAYER)[0, 0, 0] == 3
    assert not store.has("uncond", SUB_LAYER)


def test_slots_of_different_spans_are_different() -> None:
    store = CacheStore()
    store.put("cond", Slot(Kind.RESIDUAL, Span(front=1)), tokens(), step=0)
    assert not store.has("cond", RESIDUAL)
    assert store.has("cond", Slot(Kind.RESIDUAL, Span(front=1)))


def test_asking_for_what_was_never_stored_names_branch_and_kind() -> None:
    with pytest.raises(CacheStateError, match=r"'cond' asks for residual"):
        CacheStore().get("cond", RESIDUAL, like=tokens())


def test_values_come_oldest_first_with_their_steps_and_old_ones_go() -> None:
    store = CacheStore()
    for step in range(4):
        store.put("cond", RESIDUAL, tokens(step), step=step, history=2)
    kept = store.get("cond", RESIDUAL, like=tokens())
    assert [(int(v.value[0, 0, 0]), v.step) for v in kept] == [(2, 2), (3, 3)]
    assert store.bytes == 2 * tokens().nbytes


def test_bytes_follow_every_change_and_the_peak_stays() -> None:
    store, size = CacheStore(), tokens().nbytes
    store.put("cond", RESIDUAL, tokens(), step=0)
    store.put("cond", KEYS, tokens(rows=8), step=0)
    assert (store.bytes, store.peak_bytes) == (3 * size, 3 * size)
    store.put("cond", KEYS, tokens(), step=1)
    assert (store.bytes, store.peak_bytes) == (2 * size, 3 * size)
    store.drop(Kind.KEYS)
    assert store.bytes == size
    assert not store.has("cond", KEYS)
    store.clear()
    assert (store.bytes, store.peak_bytes) == (0, 3 * size)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["cond", "uncond"]),
            st.sampled_from([RESIDUAL, KEYS, SUB_LAYER]),
            st.integers(1, 6),
            st.integers(1, 3),
        ),
        max_size=20,
    )
)
def test_the_byte_count_is_the_sum_of_what_is_held(
    puts: list[tuple[str, Slot, int, int]],
) -> None:
    store, peak = CacheStore(), 0
    for step, (branch, slot, rows, history) in enumerate(puts):
        store.put(branch, slot, tokens(rows=rows), step=step, history=history)
        held = sum(e.value.nbytes for kept in store._values.values() for e in kept)
        peak = max(peak, held)
        assert store.bytes == held
    assert store.peak_bytes == peak


def test_a_view_does_not_keep_its_base_alive() -> None:
    base = torch.zeros(1, 1000, 2)
    store = CacheStore()
    store.put("cond", RESIDUAL, base[:, :4], step=0)
    assert store.bytes == tokens().nbytes
    assert store.newest("cond", RESIDUAL).untyped_storage().nbytes() == tokens().nbytes


def test_a_smaller_dtype_is_kept_and_the_askers_dtype_returned() -> None:
    store = CacheStore(StoreSettings(dtype="bfloat16"))
    store.put("cond", RESIDUAL, tokens(1 / 3), step=0)
    assert store.bytes == tokens().nbytes // 2
    value = newest(store, "cond", RESIDUAL)
    assert value.dtype is torch.float32
    # bfloat16 keeps 8 bits, so that rounding moves a value by at most 2**-8 of itself.
    assert float(value[0, 0, 0]) == pytest.approx(1 / 3, rel=2**-8)


def test_an_exact_value_keeps_its_dtype() -> None:
    store = CacheStore(StoreSettings(dtype="bfloat16"))
    store.put("", Slot(Kind.SIGNAL, "drift"), tokens(1 / 3), step=0, exact=True)
    assert store.newest("", Slot(Kind.SIGNAL, "drift")).dtype is torch.float32


def test_a_difference_is_written_into_the_buffer_already_held() -> None:
    store = CacheStore()
    store.put_difference("cond", RESIDUAL, tokens(3), tokens(1), step=0)
    buffer = store.newest("cond", RESIDUAL)
    store.put_difference("cond", RESIDUAL, tokens(7), tokens(2), step=5)
    assert store.newest("cond", RESIDUAL) is buffer
    (kept,) = store.get("cond", RESIDUAL, like=tokens())
    assert (float(kept.value[0, 0, 0]), kept.step) == (5.0, 5)
    assert store.bytes == tokens().nbytes


@pytest.mark.parametrize("change", ["shape", "dtype", "history"])
def test_a_difference_that_does_not_fit_the_buffer_gets_its_own(change: str) -> None:
    store = CacheStore()
    store.put_difference("cond", RESIDUAL, tokens(3), tokens(1), step=0)
    buffer = store.newest("cond", RESIDUAL)
    after = {"shape": tokens(9, rows=6), "dtype": tokens(9).double()}.get(change, tokens(9))
    history = 2 if change == "history" else 1
    store.put_difference("cond", RESIDUAL, after, after - 4, step=1, history=history)
    assert store.newest("cond", RESIDUAL) is not buffer
    assert float(newest(store, "cond", RESIDUAL)[0, 0, 0]) == 4
    assert float(buffer[0, 0, 0]) == 2


def test_rows_are_written_in_place_and_renew_the_step() -> None:
    store = CacheStore(StoreSettings(dtype="bfloat16"))
    store.put("cond", KEYS, tokens(1), step=0)
    before = store.bytes
    store.write_rows("cond", KEYS, torch.tensor([1, 3]), tokens(2, rows=2), step=4)
    (kept,) = store.get("cond", KEYS, like=tokens())
    assert kept.value[0, :, 0].tolist() == [1, 2, 1, 2]
    assert (kept.step, store.bytes) == (4, before)


def test_passing_the_limit_is_an_error_that_says_how_much_and_what_to_do() -> None:
    store = CacheStore(StoreSettings(max_bytes=tokens().nbytes + 8))
    store.put("cond", RESIDUAL, tokens(), step=0)
    with pytest.raises(CacheBudgetError, match=r"keys needs 32 bytes on top of 32 held") as error:
        store.put("cond", KEYS, tokens(), step=0)
    assert "bfloat16" in str(error.value)
    assert store.bytes == tokens().nbytes
    assert not store.has("cond", KEYS)


def test_replacing_a_value_needs_no_room_for_both() -> None:
    store = CacheStore(StoreSettings(max_bytes=tokens().nbytes))
    for step in range(3):
        store.put("cond", RESIDUAL, tokens(step), step=step)
    assert store.peak_bytes == tokens().nbytes


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"dtype": "no such"}, "no such"),
        ({"device": "toaster"}, "toaster"),
        ({"max_bytes": 0}, "max_bytes is 0"),
    ],
)
def test_bad_settings_are_refused_before_a_run(bad: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StoreSettings(**bad)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_a_narrower_dtype_cannot_hold_is_kept_as_its_largest_number_and_told(
    dtype: str,
) -> None:
    store, slot = CacheStore(StoreSettings(dtype=dtype)), Slot(Kind.OUTPUT)
    value = torch.full((1, 4, 2), 1.0)
    store.put("", slot, value, step=0)
    assert not store.clamped()
    beyond = value * 2 * torch.finfo(torch.float16).max
    store.put("", slot, beyond, step=1)
    store.write_rows("", slot, torch.tensor([1]), -beyond[:, :1], step=1)
    kept = store.newest("", slot)
    assert kept.isfinite().all()
    assert store.clamped() == (dtype == "float16")
    if dtype == "float16":
        assert kept[0, :, 0].tolist() == [65504.0, -65504.0, 65504.0, 65504.0]


def test_rows_go_into_a_prediction_and_never_into_a_kept_value() -> None:
    value, rows, fresh = torch.zeros(1, 4, 2), torch.tensor([1, 3]), torch.ones(1, 2, 2)
    kept = [Stored(value, 0)]
    made = value + 0
    assert with_rows(made, rows, fresh, kept) is made
    for alias in (value, value[:, :4]):
        assert torch.equal(with_rows(alias, rows, fresh, kept), made)
        assert not value.any()
