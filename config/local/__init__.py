"""What `./dev up` adds on one machine: embedded Postgres and Valkey, and their supervisor."""
