"""One file per experiment; each returns its configuration from `get_config()`."""
