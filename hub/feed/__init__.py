"""Fan-out: the feeds of this process, and who follows them.

Here a committed event finds its subscribers: cursors, the tail of recent frames, presence, and the
sweeper that looks after feeds which heard nothing. What decides about events is `hub.budget`;
what carries frames (a socket, a long-poll, the bus) is in `api` and `storage`.
"""
