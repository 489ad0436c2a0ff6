"""Requests made up from the OpenAPI document by Schemathesis; each answer is checked against it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import count, cycle
from typing import Any, Self

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis.core.transport import Response as SchemaResponse
from schemathesis.generation import GenerationMode

from hub.errors import Code
from tests.cluster import REST_S
from tests.documented import Documented, closed

STREAM = "streamEvents"  # its answer has no end
WAIT_S = "0"  # else pages wait for events, for up to a minute
_SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
MALFORMED = {Code.BAD_REQUEST.name, Code.INVALID_EVENT.name}
METHODS = ("GET", "PUT", "POST", "DELETE")  # in this order: what is deleted cannot be read


def fuzz(
    documented: Documented,
    url: str,
    token: str,
    existing: Mapping[str, str],
    requests_each: int,
) -> int:
    """So many well-formed requests of each operation, and as many that are not. `existing` are
    parameters that name something. Returns how many answers were below 400.

    Raises `AssertionError` for an answer that is not documented, as every 5xx counts, and where a
    request that is as documented is refused as malformed."""
    schema = _schema(documented)

    def in_turn(name: str) -> tuple[int, str]:
        return METHODS.index(documented.operations[name][0]), name

    with Exchange(documented, url, [token]) as exchange:
        for name in sorted(documented.operations, key=in_turn):
            operation = schema.find_operation_by_id(name)
            for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
                if mode is GenerationMode.POSITIVE or _can_be_wrong(documented, name):
                    cases = operation.as_strategy(generation_mode=mode)
                    _for_some(cases, existing, requests_each, exchange)
    return exchange.good


def explore(documented: Documented, url: str, tokens: Sequence[str], requests_min: int) -> int:
    """Scenarios of requests by these users in turn, each about what earlier answers have named:
    Schemathesis finds out by itself which answers lead to which requests. Returns and raises as
    `fuzz` does."""
    with Exchange(documented, url, tokens) as exchange:
        machine: Any = _schema(documented).exclude(operation_id=STREAM).as_state_machine()

        class Scenario(machine):  # type: ignore[misc]
            def call(self, case: Any, **kwargs: Any) -> SchemaResponse:
                return SchemaResponse.from_any(exchange(case))

            def validate_response(self, *args: object, **kwargs: object) -> None:
                """It is checked already."""

        many = settings(_SETTINGS, derandomize=False, max_examples=20, stateful_step_count=20)
        for number in count():
            if exchange.asked >= requests_min:
                return exchange.good
            # Hypothesis wants the same choices to lead to the same possibilities, but the hub
            # remembers: what it finds then is no defect, and ends only these scenarios.
            with suppress(FlakyStrategyDefinition):
                seed(number)(Scenario).run(settings=many)
            if exchange.defect is not None:
                raise exchange.defect
    raise AssertionError("unreachable")


class Exchange:
    """Sends what was made up, and checks the answer."""

    def __init__(self, documented: Documented, url: str, tokens: Sequence[str]) -> None:
        self.asked = 0
        self.good = 0  # how many answers were below 400
        self.defect: AssertionError | None = None  # the first
        self._documented = documented
        self._url = url
        self._tokens = cycle(tokens)
        self._names = {
            (method, path): name for name, (method, path, _) in documented.operations.items()
        }
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between the hub and us

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def __call__(self, case: Any) -> requests.Response:
        try:
            return self._exchange(case)
        except AssertionError as defect:
            self.defect = self.defect or defect
            raise

    def _exchange(self, case: Any) -> requests.Response:
        name = self._names[case.operation.method.upper(), case.operation.path]
        if name == "readEvents" and isinstance(case.query, dict):
            case.query["wait"] = WAIT_S
        kwargs = case.as_transport_kwargs(base_url=self._url)
        kwargs["headers"]["Authorization"] = f"Bearer {next(self._tokens)}"
        response = self._session.request(**kwargs, timeout=REST_S, stream=name == STREAM)
        self.asked += 1
        self.good += response.status_code < 400
        if name == STREAM and response.status_code == 200:
            response.close()
            return response
        assert response.status_code < 500, (name, kwargs, response.text)
        self._documented.check_answer(name, response)
        if case.meta.generation.mode is GenerationMode.POSITIVE:
            assert not MALFORMED & _codes(response), (name, kwargs, response.text)
        return response


def _codes(response: requests.Response) -> set[str]:
    """The codes of the answer's error, or of its rejected events."""
    if response.headers.get("Content-Type") != "application/json":
        return set()
    answer = response.json()
    found = [answer, *(event for event in answer.get("events", []) if "status" in event)]
    return {part["error"]["message"] for part in found if "error" in part}


def _schema(documented: Documented) -> Any:
    """What a hub of tomorrow may say, ours does not take: a currency that it does not know."""
    return schemathesis.openapi.from_dict(closed(_without_examples(documented.openapi)))


def _for_some(
    cases: st.SearchStrategy[Any],
    existing: Mapping[str, str],
    number: int,
    exchange: Callable[[Any], object],
) -> None:
    @settings(_SETTINGS, max_examples=number)
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
