"""The streaming proofs themselves: they pass for a sound cache, and each fails for the damage it is there to find."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from codec.blocks import CausalStack
from duplex.attention import Attention
from tests.streaming import Broken, check_chunks, check_gradients, check_past_ring, check_rows, prove

WINDOW = 7


@pytest.fixture
def attention() -> Attention:
    torch.manual_seed(0)
    return Attention(16, 4, 2, 100.0, 0, WINDOW)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 3 * WINDOW, 16, generator=torch.Generator().manual_seed(1))


def test_a_sound_cache_passes(attention: Attention, x: torch.Tensor) -> None:
    prove(attention, x, WINDOW, receptive_frames=WINDOW)


@pytest.mark.parametrize("damage", ["forgets", "swaps_rows", "decays", "shared", "peeks", "echoes"])
def test_chunks_find_damage(attention: Attention, x: torch.Tensor, damage: str) -> None:
    with pytest.raises(AssertionError, match="chunks of"):
        check_chunks(Broken(attention, damage), x)


@pytest.mark.parametrize(("damage", "message"), [("peeks", "later frames"), ("echoes", "frames before")])
def test_gradients_find_damage(attention: Attention, x: torch.Tensor, damage: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_gradients(Broken(attention, damage), x, receptive_frames=WINDOW)


def test_gradients_find_a_narrower_field(attention: Attention, x: torch.Tensor) -> None:
    with pytest.raises(AssertionError, match="frames before"):
        check_gradients(attention, x, receptive_frames=WINDOW - 1)


@pytest.mark.parametrize(("damage", "message"), [("grows", "in place"), ("decays", "frames from"), ("forgets", "frames from")])
def test_the_ring_proof_finds_damage(attention: Attention, x: torch.Tensor, damage: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_past_ring(Broken(attention, damage), x, WINDOW)


@pytest.mark.parametrize(
    ("damage", "message"),
    [("reset_all", "another row"), ("reset_none", "a reset row"), ("shared", "row|sessions"), ("swaps_rows", "row|sessions")],
)
def test_rows_find_damage(attention: Attention, x: torch.Tensor, damage: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_rows(Broken(attention, damage), x)


class OffByOne(Attention):
    """Forgets the oldest frame of a full window."""

    def _slot_positions(self, seen: torch.Tensor) -> torch.Tensor:
        held = super()._slot_positions(seen)
        return held.where(held > seen[:, None] - self.window_frames + 1, -1)


class LateWrap(Attention):
    """Believes the ring to be one slot longer than it is, once it has wrapped."""

    def _slot_positions(self, seen: torch.Tensor) -> torch.Tensor:
        return super()._slot_positions(seen - (seen > self.window_frames).long())


@pytest.mark.parametrize("kind", [OffByOne, LateWrap])
def test_a_ring_that_wraps_wrongly_is_found(kind: Callable[..., Attention], x: torch.Tensor) -> None:
    torch.manual_seed(0)
    part = kind(16, 4, 2, 100.0, 0, WINDOW)
    check_chunks(part, x[:, : WINDOW - 2])
    with pytest.raises(AssertionError, match=f"frames from {0 if kind is OffByOne else WINDOW}"):
        check_past_ring(part, x, WINDOW)


def test_a_convolution_that_loses_its_tail_is_found() -> None:
    torch.manual_seed(0)
    stack, x = CausalStack(8, 2, 3), torch.randn(2, 12, 8)
    check_rows(stack, x)
    for damage in ("forgets", "swaps_rows", "decays"):
        with pytest.raises(AssertionError):
            check_chunks(Broken(stack, damage), x)
