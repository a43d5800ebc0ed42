"""Model tests: every version against the official code and against float64."""
