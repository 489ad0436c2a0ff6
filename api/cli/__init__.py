"""`budget-hub`: the command line.

A command reads the environment, has its work done and prints what happened. Work of use to others
belongs elsewhere: processes in `api.process`, tools for stored data in `storage.care`.
"""

from api.cli.main import run

__all__ = ["run"]
