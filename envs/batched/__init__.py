"""Many small networks at once: parameters, random keys, layers, workers, optimizers.

Nothing here knows what a slot's life is, or what the networks learn.
"""
