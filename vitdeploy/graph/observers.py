"""Where nodes that only observe stand in the node list.

An engine that runs nodes in the order of the list can free an activation as soon as its last
reader has run, so a reduction at the end of the list keeps every observed activation alive. Which
reductions there are is decided by those who add them.
"""

import onnx_ir as ir


def bring_observers_forward_(graph: ir.Graph, first: int) -> None:
    """Move each observer right behind the node that makes the last of its inputs.

    Args:
        graph: changed in place; its nodes are in topological order.
        first: position of the first observer; all nodes from there on are observers, whose
            outputs no earlier node reads.
    """
    nodes = list(graph)
    place = {node: number for number, node in enumerate(nodes[:first])}
    behind: dict[int, list[ir.Node]] = {}
    for observer in nodes[first:]:
        producers = [value.producer() for value in observer.inputs if value is not None]
        place[observer] = max((place[node] for node in producers if node is not None), default=0)
        behind.setdefault(place[observer], []).append(observer)
    graph.remove(nodes[first:])
    for position, observers in behind.items():
        graph.insert_after(nodes[position], observers)
