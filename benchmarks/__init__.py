"""Performance and convergence, measured. Ratios within one run count; absolute times are the machine's."""
