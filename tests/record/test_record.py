"""The quick half of the record: every point at which every attack evaluates its model, bit for bit. The other half is
`make record-check`.
"""

import json

import pytest
from record import record

RECORDED = json.loads(record.RECORD.read_text())
MEASURED = dict(record.attacked())

here = record.environment()
pytestmark = pytest.mark.skipif(
    RECORDED["environment"] != here, reason=f"recorded on {RECORDED['environment']}, this is {here}"
)


def test_every_attack_of_the_record_is_measured():
    assert MEASURED.keys() == {name for name in RECORDED["results"] if name.startswith("attack ")}


@pytest.mark.filterwarnings("ignore")  # the attacks are short, and some of their models have no gradient on purpose
@pytest.mark.parametrize("name", MEASURED)
def test_an_attack_visits_the_recorded_points(name):
    assert MEASURED[name]() == RECORDED["results"][name]
