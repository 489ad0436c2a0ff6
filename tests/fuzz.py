"""Requests made up from the OpenAPI document by Schemathesis; each answer is checked against it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from schemathesis.generation import GenerationMode

from tests.documented import Documented

# A stream has no end; and pages wait for events, for up to a minute.
LEFT_OUT = {"streamEvents"}
WAIT_S = "0"


def fuzz(
    documented: Documented,
    url: str,
    headers: Mapping[str, str],
    existing: Mapping[str, str],
    requests_each: int,
) -> int:
    """So many well-formed requests of each operation, and as many that are not. `existing` are
    parameters that name something. Returns how many answers were below 400.

    Raises `AssertionError` for an answer that is not documented, as every 5xx counts."""
    schema = schemathesis.openapi.from_dict(_without_examples(documented.openapi))
    good = 0
    with requests.Session() as session:
        session.trust_env = False  # no proxy between the hub and us

        def exchange(name: str, case: Any) -> None:
            nonlocal good
            if name == "readEvents" and isinstance(case.query, dict):
                case.query["wait"] = WAIT_S
            kwargs = case.as_transport_kwargs(base_url=url)
            kwargs["headers"].update(headers)
            response = session.request(**kwargs, timeout=10)
            assert response.status_code < 500, (name, kwargs, response.text)
            documented.check_answer(name, response)
            good += response.status_code < 400

        for name in sorted(documented.operations.keys() - LEFT_OUT):
            operation = schema.find_operation_by_id(name)
            for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
                if mode is GenerationMode.POSITIVE or _can_be_wrong(documented, name):
                    cases = operation.as_strategy(generation_mode=mode)
                    _for_some(cases, existing, requests_each, partial(exchange, name))
    return good


def _for_some(
    cases: st.SearchStrategy[Any],
    existing: Mapping[str, str],
    number: int,
    exchange: Callable[[Any], None],
) -> None:
    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases, st.booleans())
    def some(case: Any, aimed: bool) -> None:
        if aimed:
            _aim(case, existing)
        exchange(case)

    some()


def _without_examples(part: Any) -> Any:
    """Schemathesis would send the examples too, and so take the names of the conversation that they
    are from."""
    if isinstance(part, dict):
        return {key: _without_examples(value) for key, value in part.items() if key != "examples"}
    if isinstance(part, list):
        return [_without_examples(value) for value in part]
    return part


def _can_be_wrong(documented: Documented, name: str) -> bool:
    _, _, operation = documented.operations[name]
    return "requestBody" in operation or any("name" in p for p in operation["parameters"])


def _aim(case: Any, existing: Mapping[str, str]) -> None:
    """Name what exists, wherever the request names a thing of that kind."""
    parts = [case.path_parameters, case.query]
    if isinstance(case.body, dict) and isinstance(case.body.get("events"), list):
        parts += case.body["events"]
    for part in parts:
        if isinstance(part, dict):
            part.update({key: value for key, value in existing.items() if key in part})
