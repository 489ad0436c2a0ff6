"""Frames of `budget.sync.v2`: what a client may send, and everything the server says."""
