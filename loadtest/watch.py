"""Watch one budget on a live socket: what the hub sends, a line each."""

from contextlib import suppress

from rich.console import Console
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from loadtest.target import Refused, Target, Unreachable
from loadtest.websocket import PROTOCOL
from loadtest.wire import FRAME_BYTES_MAX

# Told on the side, at times of the hub's own choosing.
ASIDES = ('{"type":"heads"', '{"type":"presence"')


async def watch(
    target: Target, token: str, budget_id: str, key: int, frames: int | None, console: Console
) -> None:
    """Print frames as they come, but for heartbeats and presence: `frames` of them, or until the
    hub closes the socket.

    `key` is the last sequence already known. Raises `Unreachable` and `Refused`."""
    url = f"{target.socket_url}?budgetId={budget_id}&key={key}"
    try:
        async with connect(
            url,
            additional_headers={"Authorization": f"Bearer {token}"},
            subprotocols=[PROTOCOL],
            compression=None,
            proxy=None,
            max_size=FRAME_BYTES_MAX,
        ) as socket:
            with suppress(ConnectionClosed):
                async for text in socket:
                    if isinstance(text, str) and text.startswith(ASIDES):
                        continue
                    console.out(text, highlight=False)
                    if frames is not None and (frames := frames - 1) == 0:
                        return
            console.out(f"closed: {socket.close_code} {socket.close_reason}", highlight=False)
    except InvalidHandshake as error:
        raise Refused(f"{target} refused the socket: {error}") from error
    except OSError as error:
        raise Unreachable(f"no hub answers at {target}: {error}") from error
