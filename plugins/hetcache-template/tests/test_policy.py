"""The contract: what every policy must do, each check a test of its own."""

from hetcache_core.testing import BoundCheck, parametrize_with_checks
from hetcache_template.policy import LatentChange


@parametrize_with_checks(policies=[LatentChange])
def test_contract(check: BoundCheck) -> None:
    check()
