"""What a training run takes, computed before anything is rented: see `launch.plan`."""
