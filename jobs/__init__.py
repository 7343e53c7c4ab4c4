"""The launcher: expands grids, plans, starts and watches trials, and reports on them."""
