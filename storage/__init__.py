"""Everything with a driver: Postgres, Redis, object stores, and the servers out of wheels.

This folder implements `hub.ports` and decides nothing about events.
"""
