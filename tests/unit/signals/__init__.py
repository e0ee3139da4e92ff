"""Laws of the signal rules, their settings and their scoring."""
