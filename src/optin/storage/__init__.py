"""Folders of pruned networks, reports and exports."""
