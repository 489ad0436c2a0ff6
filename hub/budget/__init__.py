"""What a budget is and what may happen to it: records, events, rules, verdicts, replay.

Everything here is pure. State and time come in as arguments, values go out; nothing waits, reads a
clock, draws a number or knows a transport. What needs any of these belongs one floor up, in `hub`.
"""
