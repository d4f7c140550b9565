"""Every family that transformers knows: the table in docs/models.md says what is true of it.

Under a later version of transformers than the table's no family may be worse than it says. Under
an earlier one families have other code, so that only what is measured must be right.
"""

import pytest
import torch
import transformers
from packaging.version import Version

from families.examined import BLOCKS, UNTRIED, WHOLE, examined, families
from families.independent import mxfp4
from families.table import DOCS, rows_in, section, summary, version_of, written
from fp4scope import fake_quantize

TEXT = DOCS.read_text(encoding="utf-8")
ROWS = rows_in(TEXT)
VERSION = version_of(TEXT)
LATER = Version(transformers.__version__).release > Version(VERSION).release
_WAYS = (BLOCKS, WHOLE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", families())
def test_a_family_is_measured_as_the_table_says(family):
    listed = ROWS.get(family)
    if listed is not None and listed.measured == UNTRIED:
        pytest.skip(listed.says)
    found = examined(family)
    if transformers.__version__ == VERSION:
        assert found == listed, "run scripts/families"
    elif LATER and listed is not None and listed.measured in _WAYS and found.measured != UNTRIED:
        assert found.measured in _WAYS[: _WAYS.index(listed.measured) + 1], found.says
        assert found.enough >= listed.enough


def test_the_table_is_what_its_rows_give():
    assert section(TEXT) == written(list(ROWS.values()), VERSION)
    assert summary(list(ROWS.values()), VERSION) in TEXT


def test_the_independent_mxfp4_is_that_of_the_formats():
    x = torch.randn(64, 80, generator=torch.Generator().manual_seed(0)) ** 3
    x[0] = torch.linspace(-7, 7, 80).round(decimals=2)
    x[1, :40] = 0
    assert torch.equal(mxfp4(x), fake_quantize(x, "mxfp4:floor"))
