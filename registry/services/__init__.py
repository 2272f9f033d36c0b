"""Every write of the registry: one verb per function, the actor first."""
