"""What nodes share through Redis: the bus between their feeds, and the counts of rate limits.

Nothing here is the truth. Whatever is lost, late or away leaves the hub correct and only slower.
What has to survive belongs in `storage.postgres`.
"""
