"""Who a user is: tokens of the local identity and of Firebase, and until when they count.

Everything that turns a token into a `Principal`, or takes that back (expiry, revocation, a closed
account), belongs here. What a user may do with a budget is decided in `hub.budget`.
"""
