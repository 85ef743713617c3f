"""From checkpoint to phone file. Not built yet: see CHANGELOG.md."""
