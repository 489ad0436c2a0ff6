"""A real Postgres and a real Redis-compatible server out of wheels, for `budget-hub dev` and tests.

What starts, guards and ends these servers belongs here. Nothing else of `storage` imports this
room: for everything above, an embedded server is one more `DATABASE_URL` or `REDIS_URL`.

    data_dir/postgres/data       the cluster; its superuser's password is in `postgres/password`
    data_dir/redis/              where the Redis server runs; it keeps nothing on disk
    data_dir/<server>.log        of this start, `.log.1` of the one before

Each server is a child in a session of its own, so that Ctrl-C reaches only us, and ends with us
even when we are killed (on Linux). Two locks guard each: `<server>.lock` is ours and says "in use";
`<server>.running.lock` is inherited by the server, so the system frees it when the server's last
process is gone, however it ended. Started by root, a server runs as an ordinary system user, and no
folder is opened up for it.
"""


class EmbeddedError(Exception):
    """An embedded server cannot run; the message is for the user and needs no traceback."""
