"""How much of each group is kept under a budget."""
