"""Everything that may load torch: the tasks that run jobs, and the code that does the work."""
