"""What a client of an older version relies on: every field it knows, with the value it knows."""

from collections.abc import Iterator


def missing(known: object, given: object, where: str = "") -> Iterator[str]:
    """Each place where `given` is not what an older version said; fields may have been added."""
    if isinstance(known, dict) and isinstance(given, dict):
        for name, value in known.items():
            if name not in given:
                yield f"{where}.{name} is gone"
            else:
                yield from missing(value, given[name], f"{where}.{name}")
    elif isinstance(known, list) and isinstance(given, list) and len(known) == len(given):
        for number, (one, other) in enumerate(zip(known, given, strict=True)):
            yield from missing(one, other, f"{where}[{number}]")
    elif type(known) is not type(given) or known != given:
        yield f"{where} was {known!r} and is {given!r}"
