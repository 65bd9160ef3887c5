"""A chat template's tree, changed so that all it computes goes by a rendering's budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 2**20
"""Characters of a template."""
MAX_WORDS = 50_000
"""Its words and marks: Jinja takes some 25 us and 4 KB to compile one."""

COUNTED, MADE, TICKED, CONCAT = "_counted", "_made", "_ticked", "_concat"
"""Filters that pay for a loop's turns, a new value, a comparison and a `~`."""
_FEW = 16
_WORD = re.compile(r"\w+|[^\w\s]")


def check_source(source: str) -> None:
    """Raises SecurityError for a template that would take long to compile."""
    if len(source) > MAX_SOURCE:
        raise SecurityError(f"it has more than {MAX_SOURCE:,} characters")
    if len(source) > MAX_WORDS and len(_WORD.findall(source)) > MAX_WORDS:
        raise SecurityError(f"it has more than {MAX_WORDS:,} words and marks")


def measured(tree: nodes.Template) -> nodes.Template:
    """The tree, its loops counted, and its values paid for where they are made."""
    return _Measured().visit(tree)


class _Measured(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _through(COUNTED, node.iter)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        return self._given(node)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        return self._given(node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        return self._given(node)

    def _given(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        if node.dyn_args is not None:  # `f(*items)` takes them before anybody asks f
            node.dyn_args = _through(COUNTED, node.dyn_args)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _through(CONCAT, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        return _through(TICKED, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _through(MADE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._made(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return node if node.ctx != "load" else self._made(node, node.items)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._made(node, [one for pair in node.items for one in (pair.key, pair.value)])

    def _made(self, node: Any, items: Sequence[nodes.Node]) -> nodes.Node:
        if len(items) <= _FEW and all(isinstance(one, nodes.Const) for one in items):
            return node  # the source bounds it
        self.generic_visit(node)
        return _through(MADE, node)


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
