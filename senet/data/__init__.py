"""Where images come from: `source` makes a loader for the data set of a config."""
