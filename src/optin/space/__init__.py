"""What can be removed, planned and scored, as plain data: no network is needed."""
