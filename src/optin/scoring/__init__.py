"""How important each unit is: the trajectory, its projections, and the criteria."""
