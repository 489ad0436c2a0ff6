"""The interface described: OpenAPI, AsyncAPI, a page for people and a Postman collection.

`make documents` makes them from the code's models and writes them to `files/`; all that a running
hub needs of this room is `routes`, which serves the files.

This room describes and decides nothing: a route is in `api.rest`, a frame in `hub.frames`, a code
in `hub.errors`.
"""
