"""One process of a site's group; `mdc_flower.site.launcher` starts it."""

import sys
from pathlib import Path

from mdc_flower.site.launcher import end_with
from mdc_flower.site.leading import join, take_part
from mdc_flower.site.worker import serve


def main(folder: Path, shard: bool, parent: int) -> None:
    """Take part until the site has nothing more to do."""
    end_with(parent)
    group = join(shard)
    if group.ranks.rank == 0:
        serve(folder)
        group.end()
    else:
        group.follow(take_part)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "1", int(sys.argv[3]))
