"""The budgets: the log and its commit, reads of a whole budget, and who may be let in.

Statements of the hot path and of the budget's own tables belong here. What a user has apart from
any budget is in `people`.
"""
