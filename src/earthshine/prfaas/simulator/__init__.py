"""The simulator of a fleet: its parts, scenarios, the policies to compare with, and the bound on any."""
