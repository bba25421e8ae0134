"""The sequence engine: a pure ``step``, traced once, as fused kernels over whole sequences.

It is handed values (``request``) and knows no layer. What other packages may use of it is below; in
order, each file knowing only those before it:

``ops`` is the one table of operations, ``graph`` what is computed; ``findings``, ``request`` and
``aside`` are what the engine is told and keeps; ``reads`` and ``standin`` stand in for a module
while ``recorder`` and ``trace`` make step → graph. ``kernel`` says what one direction computes;
``cpp`` and ``triton`` render it, with ``naming``; ``launch``, ``build``, ``native`` and
``triton_launch`` make it run; ``targets`` is the one registry of these languages. ``memory`` and
``segments`` help ``program`` to give it tensors; ``definition`` is the step again for second
derivatives; ``operators`` runs it in autograd, where ``last_use`` says whose memory is free, and
``serving`` answers requests. ``spikes`` makes bits of tensors, ``events`` a product of those that
are not zero. ``scan``, with ``scan_kernel``, ``cpp_scan`` and ``triton_scan``, does it for outputs
summed over many states, and ``recurrence`` for a part of a layer.
"""

from __future__ import annotations

from tracetorch.engine.recurrence import Recurrence
from tracetorch.engine.scan import Scan
from tracetorch.mode import transformed

__all__ = ["Recurrence", "Scan", "transformed"]
