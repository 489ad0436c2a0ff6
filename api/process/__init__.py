"""The processes of a server: one node that serves, and the supervisor of several on one port.

Sockets, signals, children and the settings of the web server belong here. What a node is made of is
composed in `api.app`.
"""
