"""Networks, one file per family; `zoo.create_model` makes them by name."""
