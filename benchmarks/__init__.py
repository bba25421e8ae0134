"""Measurements of traceTorch beside its peers; ``python -m benchmarks`` runs them."""
