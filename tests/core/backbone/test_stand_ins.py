"""What a library's code sees in place of its own objects."""

from __future__ import annotations

from hetcache_core import StandIn


class Base:
    blocks: tuple[str, ...] = ("own",)

    def first(self) -> str:
        return self.blocks[0]


class Model(Base):
    def first(self) -> str:
        return f"first: {super().first()}"

    def forward(self) -> str:
        return self.first()


def test_methods_of_a_stand_in_see_what_is_replaced_also_those_of_its_bases() -> None:
    model = Model()
    stand_in = StandIn(model, blocks=("ours",))
    assert stand_in.first() == stand_in.forward() == "first: ours"
    assert model.forward() == "first: own"
    assert isinstance(stand_in, Model)
    model.forward = StandIn(model, blocks=("bound",)).first  # type: ignore[method-assign]
    assert stand_in.forward() == "first: bound"  # of another object, which it stays
