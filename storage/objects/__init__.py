"""Files of users: where they are put and how they get there.

A store keeps objects by name (`store.py` says what it does, `s3.py` and `disk.py` do it); a flow
such as `photos.py` takes a file from the signed upload URL to the row that names it. Records, and
whatever else Postgres alone decides, belong in `storage.postgres`.
"""
