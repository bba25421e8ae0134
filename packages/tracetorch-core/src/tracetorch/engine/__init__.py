"""The sequence engine: a layer's own ``step``, traced once, as fused kernels over whole sequences.

``ops`` is the one table of operations, ``graph`` what is computed, ``trace`` step → graph;
``kernel`` says what one direction computes; ``cpp`` and ``triton`` render it, with ``naming``;
``build`` and ``launch`` make it run; ``program`` gives it tensors, ``definition`` the step again
for second derivatives. ``admission`` says which calls may take it, ``fingerprint`` what of a layer
it depends on, ``known`` what is known of one; ``operators`` and ``sequence`` run it in autograd.
``scan``, with ``scan_kernel``, ``cpp_scan`` and ``triton_scan``, does it for outputs summed over
many states.
Each knows only those named before it; none knows a layer's class beyond ``tt.Layer``.
"""
