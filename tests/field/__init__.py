"""Inputs from the field that an earlier version got wrong: public bug reports, attacks, proxies."""
