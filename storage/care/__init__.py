"""Tools that check, copy or mend what is stored, for the operator's commands.

They read the tables across rooms and run beside a living hub or before it starts. What a request, a
frame or a schedule needs belongs in `storage.postgres`.
"""
