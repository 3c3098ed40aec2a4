"""The OpenAPI description against the service: a tester that reads it finds nothing."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup

from helpers import draw
from service import Serve, as_bytes

pytestmark = pytest.mark.slow

_PLAIN = ("/index", "/healthz", "/metrics")

# What no schema can say: that bytes are an image, that a filter can be read, that a box is inside.
schemathesis.openapi.format(
    "binary", st.integers(0, 9).map(lambda seed: as_bytes(draw(seed % 4, seed)))
)
schemathesis.openapi.format("filter", st.sampled_from(["", "price < 10", "group == 'a'"]))
schemathesis.openapi.format("box", st.sampled_from(["0,0,8,8", "2.5,1,4,4"]))


@pytest.mark.parametrize("mode", GenerationMode)
def test_answers_are_as_described(serve: Serve, mode: GenerationMode) -> None:
    """All checks on every operation, with requests that keep to the description or break it."""
    app = serve(hosts=("testserver",)).app
    described = schemathesis.openapi.from_asgi("/openapi.json", app)
    found = []
    for result in described.get_all_operations():
        operation = result.ok()

        @seed(0)
        @settings(
            max_examples=20,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            case.call_and_validate()

        try:
            check()
        except Unsatisfiable:  # no request of an operation without parameters breaks it
            assert mode == GenerationMode.NEGATIVE and operation.path in _PLAIN
        except FailureGroup as failures:
            found.append(f"{operation.label}: {failures.exceptions}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/image", "/item", "/search"])
def test_answers_about_an_indexed_image_are_as_described(
    serve: Serve, method: str, path: str
) -> None:
    """The tester makes ids up, which the index does not have."""
    app = serve(hosts=("testserver",)).app
    described = schemathesis.openapi.from_asgi("/openapi.json", app)
    answer = described[path][method].Case(query={"id": "a/0.png"}).call_and_validate()
    assert answer.status_code == 200
