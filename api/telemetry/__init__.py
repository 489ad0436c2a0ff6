"""What a node tells about itself: metrics, log lines, traces, how late its loop is.

The numbers are counted where the work is done (`hub.measures`); their names, units and formats
belong here. Nothing in this room changes what a node does.
"""
