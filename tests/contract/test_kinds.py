"""No carded system goes without a contract."""

from pathlib import Path

import pytest

from torchstone.catalog import cards

DOMAINS = sorted({card.domain for card in cards().values()})


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_kind_of_system_has_contract_tests(domain):
    assert list(Path(__file__).parent.glob(f"test_{domain}_*.py")), f"write tests/contract/test_{domain}_*.py"
