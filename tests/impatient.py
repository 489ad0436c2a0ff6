"""`budget-hub` that gives up a peer within a second: `python -m tests.impatient serve`.

Tests need not wait as long as phones may."""

from api.cli.main import main
from api.http import protocol

STALLED_S = 1.0

if __name__ == "__main__":
    protocol.STALLED_S = STALLED_S
    main()
