"""The ground of REST: what every request passes and every route shares.

The bounds of the protocol, the edge, the guard and the limits around the routes, the reading of
requests, the shape of answers and errors. Routes belong in `api.rest`, or in the room of what they
serve.
"""
