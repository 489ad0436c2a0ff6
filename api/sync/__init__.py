"""The socket, `GET /sync`: who may open one, its bytes, and the wire that a session writes to.

What frames mean is the matter of `hub.session`; long-polls and event streams, which HTTP carries,
are routes in `api.rest`.
"""
