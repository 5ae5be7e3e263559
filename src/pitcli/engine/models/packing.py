"""The layout of trees for a model: each tree packed in one row, or each conversation in a separate row."""

from collections.abc import Sequence

from pitcli.engine.models.batches import Batch
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import Tree, packed_batch, separate_batch


def tree_batch(model: RoleModel, trees: Sequence[Tree], of_tokens: bool = False) -> Batch:
    """Return the batch of trees for this model, packed if it can read packed trees; of_tokens as in separate_batch."""
    if packs(model, max(max(tree.lengths()) for tree in trees)):
        return packed_batch(trees, model.pad_id, of_tokens).to(model.device)
    return separate_batch(trees, model.pad_id, of_tokens).to(model.device)


def tokens_read(model: RoleModel, tree: Tree) -> int:
    """Return the tokens that the model reads for one tree: packed, or in padded separate rows."""
    lengths = tree.lengths()
    return tree.tokens() if packs(model, max(lengths)) else len(lengths) * max(lengths)


def packs(model: RoleModel, longest: int) -> bool:
    """Return whether pit's masks give the right attention for conversations of up to `longest` tokens.

    They replace a base's attention window, sliding or chunked, so the window must be at least `longest`.
    """
    config = model.base.config.get_text_config()
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return model.packs_trees and all(window is None or longest <= window for window in windows)
