"""What belongs to whole sequences: a model's timesteps at once, or one after another.

``unrolling`` is ``Model.unroll``: arguments, chunks, ends of samples, cuts. ``decision`` says once
for a kind of sequence whether ``forward`` may run over all timesteps at once: ``trial`` holds that
to the loop on a ``twin`` of the model; ``fold`` then does it, and a ``glance`` shows whether
``forward`` changed anything by it. ``packing`` keeps spikes as bits. ``assembling``
puts chunks together, ``recomputing`` lets them be computed again, ``checking`` is
``tt.check_unroll``.
"""
