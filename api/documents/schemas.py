"""JSON schemas of models and types, named and shared as `#/components/schemas/…`."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

Json: TypeAlias = dict[str, Any]


INT32_MAX = 2**31 - 1


class _Schemas(GenerateJsonSchema):
    """Without what would say nothing, or something wrong: titles made of field names, and defaults
    that stand for *absent* (an absent field of an edit is unchanged, where null clears it)."""

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        """Without a format, generators for Kotlin and Java make 32 bits of milliseconds."""
        made = super().int_schema(schema)
        made["format"] = "int32" if made.get("maximum", INT32_MAX + 1) <= INT32_MAX else "int64"
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        made = super().default_schema(schema)
        if made.get("default") in (None, "", "0.00"):
            made.pop("default", None)
        return made


def schemas(types: Mapping[str, Any]) -> tuple[dict[str, Json], dict[str, Json]]:
    """The schema of each of the types, by its key; and those they refer to, by name."""
    adapters: list[tuple[str, Any, TypeAdapter[Any]]] = [
        (key, "validation", TypeAdapter(type_)) for key, type_ in types.items()
    ]
    made, definitions = TypeAdapter.json_schemas(
        adapters, ref_template="#/components/schemas/{model}", schema_generator=_Schemas
    )
    named: dict[str, Json] = definitions.get("$defs", {})
    for schema in named.values():
        if "description" in schema:  # of a docstring, which has line breaks
            schema["description"] = " ".join(schema["description"].split())
    return {key: schema for (key, _), schema in made.items()}, named


def resolved(document: Json, part: Json) -> Json:
    """`part`, or what its `$ref` names in the document."""
    found: Any = part
    if "$ref" in part:
        found = document
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
    resolved_part: Json = found
    return resolved_part
