"""What a client does with a delta: the way beside the stream to bring its copy up to date."""

from collections.abc import Mapping
from typing import Any

from loadtest.replica import FIELDS, Replica


def after_delta(replica: Replica, delta: Mapping[str, Any] | None) -> Replica:
    """A new replica: the old one with the delta applied as design 3.4 says, or a copy of it.

    Raises `loadtest.replica.Diverged` if its digest is not the one that the delta states."""
    records = {kind: dict[str, Any]() for kind in FIELDS}
    for (kind, id), record in replica.records.items():
        records[kind][id] = record
    sequence, digest = replica.sequence, replica.digest_text
    members = [{"userId": user, "role": role} for user, role in replica.members.items()]
    if delta is not None:
        assert (delta["budgetId"], delta["key"]) == (replica.budget_id, replica.sequence)
        sequence, digest = delta["lastEventSequence"], delta["digest"]
        if "budget" in delta:
            records["budget"][delta["budget"]["id"]] = delta["budget"]
        members = delta.get("participants", members)
        for kind, changed in (("category", "categories"), ("expense", "expenses")):
            for record in delta[changed]:
                if record.get("deleted"):
                    records[kind].pop(record["id"], None)
                else:
                    records[kind][record["id"]] = record
    if not records["budget"]:
        return Replica(replica.budget_id)
    return Replica.from_snapshot(
        {
            **records["budget"][replica.budget_id],
            "categories": records["category"].values(),
            "expenses": records["expense"].values(),
            "participants": members,
            "lastEventSequence": sequence,
            "digest": digest,
        }
    )
