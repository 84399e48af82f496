"""Pictures of graphs as SVG, drawn by hand: no library beyond the standard one, equal graphs give equal bytes."""
