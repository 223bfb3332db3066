"""The time of one step on many GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass

# s, a step's part that no batch shortens; with `exposed` and `jitter` it fits MLPerf's H100 rows, 8 to 3,584 GPUs
FIXED = 3.6e-3
LINK_LATENCY, NETWORK_LATENCY = 3e-6, 6e-6  # s a hop
BACKWARD, OVERLAP = 2 / 3, 0.8  # share of backward in a step's compute, and of backward that all-reduce can hide behind
JITTER = 0.005  # standard deviation of a rank's step, as a share; assumed


@dataclass(frozen=True)
class Cluster:
    gpus: int
    per_node: int
    link: float  # GB/s within a node
    network: float  # GB/s of a node

    @property
    def nodes(self) -> int:
        return math.ceil(self.gpus / self.per_node)


@dataclass(frozen=True)
class Step:
    """Seconds of a step: `compute` grows with the batch, `fixed` does not; `exposed` is communication that nothing
    hides, `jitter` the wait for the slowest rank.
    """

    compute: float
    fixed: float
    exposed: float
    jitter: float
    all_reduce: float  # hidden or not

    @property
    def total(self) -> float:
        return self.compute + self.fixed + self.exposed + self.jitter


def all_reduce(size: float, cluster: Cluster) -> tuple[float, float]:
    """Return the seconds to sum `size` bytes over all GPUs, a ring within nodes and trees between them, and the part of
    them that is latency.

    With G GPUs a node and K nodes: 2 (G-1)/G size/link + 2 (K-1)/K size/network + 2 (G-1) alpha_link + 2 log2(K)
    alpha_network. The GPUs of a node share its network, each with a Gth of the gradients.
    """
    inside, nodes = min(cluster.gpus, cluster.per_node), cluster.nodes
    latency = 2 * (inside - 1) * LINK_LATENCY + 2 * math.log2(nodes) * NETWORK_LATENCY
    within = 2 * (inside - 1) / inside * size / (cluster.link * 1e9)
    between = 2 * (nodes - 1) / nodes * size / (cluster.network * 1e9)
    return within + between + latency, latency


def step(compute: float, gradients: float, cluster: Cluster) -> Step:
    """Return the step of `compute` seconds on one GPU, with `gradients` bytes to sum.

    exposed = max(0, all-reduce - 0.8 of backward) + the last bucket, of which only the latency counts, for it is small;
    jitter = sigma sqrt(2 ln N) of the step, the mean of the slowest of N normal draws.
    """
    if cluster.gpus == 1:
        return Step(compute, FIXED, 0.0, 0.0, 0.0)
    whole, latency = all_reduce(gradients, cluster)
    exposed = max(0.0, whole - OVERLAP * BACKWARD * compute) + latency
    jitter = JITTER * math.sqrt(2 * math.log(cluster.gpus)) * (compute + FIXED + exposed)
    return Step(compute, FIXED, exposed, jitter, whole)
