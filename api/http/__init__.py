"""The ground of REST: what every request passes and every route shares.

The edge, the guard and the limits around the routes, the reading of requests, the shape of answers
and errors. A route belongs in `api.rest`.
"""
