"""`budget-hub` that takes the server at `GOOGLE_URL` for Google: `python -m tests.firebase_hub`.

It adds a byte to the file `VERIFICATIONS` for each token it verifies, and keeps Google's keys for
as short a time as it is told to. With `LOOP_LAG` it writes how late its loop was, ten milliseconds
at a time, to that file, a number of seconds a line.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from firebase_admin import auth

from api.auth import firebase
from api.cli.main import main
from api.process import server
from tests.google import ask_at

LAG_EVERY_S = 0.01


def count_verifications(path: str) -> None:
    verify = auth.Client.verify_id_token
    counted = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def verify_and_count(self: auth.Client, *args: Any, **how: Any) -> Any:
        os.write(counted, b".")
        return verify(self, *args, **how)

    auth.Client.verify_id_token = verify_and_count


def measure_lag(path: Path) -> None:
    serve = server.serve

    async def measure() -> None:
        loop = asyncio.get_running_loop()
        with path.open("a", buffering=1) as lags:
            while True:
                due_s = loop.time() + LAG_EVERY_S
                await asyncio.sleep(LAG_EVERY_S)
                lags.write(f"{loop.time() - due_s:.6f}\n")

    async def measured(*args: Any, **how: Any) -> None:
        measuring = asyncio.create_task(measure())
        try:
            await serve(*args, **how)
        finally:
            measuring.cancel()

    server.serve = measured


if __name__ == "__main__":
    firebase.KEYS_AGE_S_MIN = 0.0
    ask_at(os.environ["GOOGLE_URL"], pytest.MonkeyPatch())
    if "VERIFICATIONS" in os.environ:
        count_verifications(os.environ["VERIFICATIONS"])
    if "LOOP_LAG" in os.environ:
        measure_lag(Path(os.environ["LOOP_LAG"]))
    main()
