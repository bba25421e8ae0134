"""The sequence engine: a layer's own ``step``, traced once, as fused kernels over whole sequences.

``ops`` is the one table of operations, ``graph`` what is computed, ``trace`` step → graph;
``cpp`` renders a graph, ``build`` compiles and caches it, ``sequence`` runs it inside autograd.
Each knows only those named before it; none knows a layer's class beyond ``tt.Layer``.
"""
