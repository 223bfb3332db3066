"""How the images of a set are kept: `find` tells folders from shards."""
