"""The record, on the kind of machine that it was written on; `make record` writes it on another."""

import json

import pytest
from record import record

RECORDED = json.loads(record.RECORD.read_text())
MEASURED = dict(record.entries())

here = record.environment()
pytestmark = pytest.mark.skipif(
    RECORDED["environment"] != here, reason=f"recorded on {RECORDED['environment']}, this is {here}"
)


def test_everything_in_the_record_is_measured():
    assert MEASURED.keys() == RECORDED["results"].keys()


@pytest.mark.filterwarnings("ignore")  # the attacks are short, and some of their models have no gradient on purpose
@pytest.mark.parametrize("name", MEASURED)
def test_results_are_the_recorded_ones(name):
    assert MEASURED[name]() == RECORDED["results"][name]
