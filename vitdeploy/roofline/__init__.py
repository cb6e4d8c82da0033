"""How far artefacts are from what the machine could do: its ceilings, and the work of layers.

`ceilings` measures the machine, `ort_layers` and `openvino_layers` count what each layer of an
engine's own graph computes and moves, `utilisation` sets one against the other. Latencies are
`profiling`'s matter.
"""
