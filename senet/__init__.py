"""Training of Squeeze-and-Excitation networks (Hu et al., arXiv 1709.01507) at ImageNet scale."""
