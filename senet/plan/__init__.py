"""What a training run takes: time, money, storage, network, cores; computed before anything is rented. See
`launch.plan`.
"""
