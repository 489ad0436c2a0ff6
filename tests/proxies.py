"""nginx in front of hubs, set up as others do it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from loadtest.cluster import Port
from loadtest.process import POLL_S
from tests.cluster import BUSY_S
from tests.requirements import program

# As nginx's own guide to WebSockets has it: `Upgrade` is passed on, whatever a client offers, and
# the connections to the hub are shared among all clients.
NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream hub {{ {servers} keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://hub; proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, *hubs: str) -> AsyncIterator[str]:
    """The URL of an nginx in front of these; skips the test where there is none."""
    executable = program("nginx", "nginx")
    port = Port()
    port.close()
    servers = " ".join(f"server {urlsplit(hub).netloc};" for hub in hubs)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, servers=servers, port=port.number))
    running = await asyncio.create_subprocess_exec(executable, "-p", folder, "-c", config)
    try:
        await _listening(port.number, running)
        yield f"http://127.0.0.1:{port.number}"
    finally:
        running.terminate()
        await running.wait()


async def _listening(port: int, running: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(BUSY_S):
        while running.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(POLL_S)
            else:
                writer.close()
                return
    raise AssertionError(f"nginx ended with {running.returncode}")
