"""One process a rank: the engine process asks all of them for each step, rank 0 answers."""
