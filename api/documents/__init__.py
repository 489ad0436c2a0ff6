"""The interface described: OpenAPI, AsyncAPI and a page for people, made from the code's models.

This room describes and decides nothing: a route is in `api.rest`, a frame in `hub.frames`, a code
in `hub.errors`.
"""
