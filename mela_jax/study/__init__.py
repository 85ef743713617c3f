"""Studies: the main job run over settings, seeds and folds, and compared."""
