"""How many traces, transfers and collectives."""
