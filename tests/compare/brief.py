"""Comparisons that are over soon, however much time they are given: the smallest tasks, a few steps each."""

from dataclasses import replace

from regardant.compare import small_sizes, trials


def brief(patch=setattr, patch_item=lambda mapping, key, value: mapping.update({key: value})):
    """Plans of this process choose the smallest size and four steps."""
    patch(small_sizes, "SIZES", small_sizes.SIZES[:1])
    recall = trials.TRIALS["recall"]
    setting = replace(recall.sizes["small"], batch=2, least=1, enough=4, most=4)
    patch_item(trials.TRIALS, "recall", replace(recall, sizes={"small": setting}))


if __name__ == "__main__":
    from regardant.cli.main import app

    brief()
    app()
