"""How the images of a split are kept: a subclass of `index.Storage` for each format, chosen by `find`."""
