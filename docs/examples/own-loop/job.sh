#!/bin/bash
# A site's command in bash: each line of its input is the folder of a round.
set -euo pipefail
here=$(dirname "$0")
while read -r folder; do
    # The script must not read the lines that follow.
    "${PYTHON:-python3}" "$here/job.py" "$folder" "$1" </dev/null
done
