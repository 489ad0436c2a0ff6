"""Everything with a driver: Postgres, Redis, object stores, and the servers out of wheels.

It implements the log and the bus of `hub.ports`, and decides nothing about events.
"""
