"""The rules and the live sessions of the hub. No vendor is known here.

What decides, commits, orders and delivers belongs in this folder. What speaks to a database, a bus
or a web server is behind the protocols of `hub.ports`.
"""
