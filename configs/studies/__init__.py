"""One file per study; each returns it from `get_study()`."""
