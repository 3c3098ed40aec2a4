"""The description of the service tells the truth: a schema-driven tester finds nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers import draw
from pictures import encode
from whiten.index import Index
from whiten.serve import Settings, create_app

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the tester's own imports
    import schemathesis
    from schemathesis.transport.serialization import Binary

# Nor does every text or file make an image.
schemathesis.openapi.format("binary", st.just(encode(draw(1))).map(Binary))
# A description can only say that a filter is a text of this format.
schemathesis.openapi.format(
    "whiten-filter",
    st.sampled_from(["", "price < 10", "group == 'a'", "price >= 10 and group in ['b', 'c']"]),
)
schemathesis.openapi.format(
    "whiten-metadata", st.sampled_from(["", '{"price": 5}', '{"price": null, "shop": "north"}'])
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the tester, which deprecates what it uses
def test_a_schema_driven_tester_finds_nothing(index: Index) -> None:
    app = create_app(index)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    schema.config.seed = 1
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 9
    for operation in operations:
        check(operation.as_strategy())()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nor_in_a_service_that_writes(index: Index) -> None:
    app = create_app(index, Settings(writable=True, token="rose-17"))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    schema.config.seed = 1
    operations = [result.ok() for result in schema.get_all_operations()]
    writing = [one for one in operations if (one.method, one.path) in WRITING]
    assert (len(operations), len(writing)) == (11, 2)
    for operation in writing:
        check(operation.as_strategy(), Authorization="Bearer rose-17")()


WRITING = {("post", "/items"), ("delete", "/items/{id}")}


def check(cases: st.SearchStrategy[schemathesis.Case], **headers: str) -> Callable[[], None]:
    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def every_check_passes(case: schemathesis.Case) -> None:
        case.call_and_validate(headers={"Host": "localhost", **headers})

    return every_check_passes
