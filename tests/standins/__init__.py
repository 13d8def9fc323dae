"""Programs that stand in for those of machines that are not here; they refuse what the real ones do not know."""
