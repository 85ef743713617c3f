"""One file per family of networks; `zoo` takes the `NETWORKS` of every file here."""
