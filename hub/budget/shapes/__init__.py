"""What the hub sends of a budget, as types: scalars, records, stream events, verdicts.

mypy compares what is sent with them, and the documents of the interface are made from them. What
clients send is checked at run time instead, by the shapes of `hub.budget.events`.
"""
