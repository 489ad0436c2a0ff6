"""The users: profiles, logins of the local identity, and accounts that were closed.

Names and e-mails stand in these tables and nowhere else, so that closing an account can find them
all. Membership is part of a budget and is in `core`.
"""
