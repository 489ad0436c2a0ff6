"""The routes: `core/` for budgets, `people/` for users, `files/` for objects; health, error codes.

A handler reads the request, asks the hub or a store, and answers. Rules, statements and the shape
of errors are elsewhere; what all routes share is in `api.http`.
"""
