"""Strategies of hypothesis for damaged and hostile files, and the check of what a reader makes of them."""

import os
import resource
import time

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gantx.errors import GantxError

CASES = int(os.environ.get("GANTX_FUZZ_CASES", "300"))
SECONDS, BYTES = 10, 2 * 2**30  # that one case may take
_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)
fuzzed = settings(
    max_examples=CASES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def damaged(draw, originals):
    """One of the `originals` with a few changes: bytes set, taken out, put in, repeated, or cut off."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(("flip", "number", "bytes", "insert", "remove", "repeat", "cut")))
        if kind == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "number":
            number = draw(st.sampled_from(_NUMBERS))
            width = draw(st.sampled_from((1, 2, 4, 8)))
            order = draw(st.sampled_from(("little", "big")))
            content[at : at + width] = (number % 256**width).to_bytes(width, order)
        elif kind in ("bytes", "insert"):
            piece = draw(st.binary(min_size=1, max_size=8))
            content[at : at + (len(piece) if kind == "bytes" else 0)] = piece
        elif kind == "remove":
            del content[at : at + draw(st.integers(1, 64))]
        elif kind == "repeat":
            content[at:at] = content[at : at + draw(st.integers(1, 64))]
        else:
            del content[at:]
    return bytes(content)


# Values as a hostile file may have them, in place of any other.
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.sampled_from((-1, 0, 2**31, 2**63, 2**64, 10**400, 1e306, 1e-306))
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(("", "\x1b[31m", "../..", "/dev/zero", "<script>", "`", "é\u202e", "\0")),
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=8), inside, max_size=4),
    max_leaves=6,
)


@st.composite
def altered(draw, tree, inside=values):
    """A tree of dictionaries and lists with one or two values in it replaced, removed or added."""
    tree = _copy(tree)
    for _ in range(draw(st.integers(1, 2))):
        node, key = tree, None
        while isinstance(node, dict | list) and node:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            parent, key = node, draw(st.sampled_from(keys))
            node = parent[key]
            if draw(st.integers(0, 3)) == 0:
                break
        if key is None:
            return draw(inside)
        if draw(st.integers(0, 7)) == 0:
            del parent[key]
        else:
            parent[key] = draw(inside)
    return tree


def _copy(tree):
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    return [_copy(value) for value in tree] if isinstance(tree, list | tuple) else tree


def survives(read, *given):
    """Call a reader: it returns, or raises a documented error, within `SECONDS` of CPU time and `BYTES`."""
    before, began = _peak(), time.process_time()
    try:
        read(*given)
    except GantxError as problem:
        ended, said = problem.exit_code, str(problem)
    else:
        ended, said = 0, ""
    assert ended != 70
    assert len(said) < 3000 + 2 * sum(len(text) for text in given if isinstance(text, str))
    assert time.process_time() - began < SECONDS
    assert _peak() - before < BYTES


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
