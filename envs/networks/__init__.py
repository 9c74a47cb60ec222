"""Networks as ordinary modules: cut at their slots, and compiled by a table of rules."""
