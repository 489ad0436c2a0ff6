"""The process edge: settings, composition, sockets, REST, the command line.

This folder alone knows Starlette and uvicorn, and it alone reads the environment.
"""
