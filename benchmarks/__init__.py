"""Every number that the documents claim, and the script that makes it."""
