"""How trees are laid out for a model: packed in one row, or, if its base takes none, each conversation by itself."""

from collections.abc import Sequence

from pitcli.engine.models.batches import Batch
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import Tree, packed_batch, separate_batch


def tree_batch(model: RoleModel, trees: Sequence[Tree], of_tokens: bool = False) -> Batch:
    """Trees as this model takes them, packed or every conversation by itself; of_tokens as in separate_batch."""
    if packs(model, max(max(tree.lengths()) for tree in trees)):
        return packed_batch(trees, model.pad_id, of_tokens).to(model.device)
    return separate_batch(trees, model.pad_id, of_tokens).to(model.device)


def tokens_read(model: RoleModel, tree: Tree) -> int:
    """Of a tree by itself: packed its own; if not, of each conversation as many as of the longest."""
    lengths = tree.lengths()
    return tree.tokens() if packs(model, max(lengths)) else len(lengths) * max(lengths)


def packs(model: RoleModel, longest: int) -> bool:
    """Whether the base takes a mask of ours on conversations of up to `longest` tokens.

    That mask replaces a window, sliding or not, so it is right only if the window holds all of them.
    """
    config = model.base.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return model.packs_trees and all(window is None or longest <= window for window in windows)
