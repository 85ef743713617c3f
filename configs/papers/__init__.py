"""Published methods, one configuration each, on the one training loop."""
