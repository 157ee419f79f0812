#!/usr/bin/env bash
# Everything CI checks. `make test` runs it with the project's .venv first on PATH.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MPLBACKEND=agg PYTHONDONTWRITEBYTECODE=1
now="setting up"
step() { now=$*; printf '\n== %s\n' "$now"; }
trap 'rc=$?; if [ $rc = 0 ]; then printf "\n== all checks passed\n"; else printf "\n== FAILED: %s\n" "$now" >&2; fi' EXIT
command -v nbdev_export >/dev/null || { echo "nbdev is not on PATH; run this by 'make test'" >&2; exit 1; }

# Checksums of what the next step may rewrite; compared with themselves, so uncommitted edits may pass
made=(samplesplit_nb nbs README.md index_files settings.ini pyproject.toml)
sums() {
  find "${made[@]}" \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -o \
    -type f ! -name nbdev.yml -exec cksum {} + 2>/dev/null | sort -k 3
}

step "library, notebooks and README in sync"
before=$(sums || true)
nbdev_export
nbdev_clean
python tools/readme.py
after=$(sums || true)
if [ "$before" != "$after" ]; then
  echo "These files were out of date and have just been rewritten:" >&2
  { diff <(echo "$before") <(echo "$after") || true; } | sed -n 's/^[<>] [0-9]* [0-9]* /  /p' | sort -u >&2
  echo "The notebooks are the source: look at 'git diff', then commit. (By hand: nbdev_export, nbdev_clean, python tools/readme.py.)" >&2
  exit 1
fi

step "lint"
ruff check -q .

step "site"
python tools/site.py

# Every notebook runs once, in a fresh kernel where only the runtime requirements are installed (tests/test_kernels.py).
# That is stricter than nbdev_test, which is tried on one notebook here.
step "nbdev_test"
OMP_NUM_THREADS=1 nbdev_test --path nbs/support/checks.ipynb --do_print

step "times" # these want the machine for themselves
OMP_NUM_THREADS=1 python -m pytest -q -m alone

step "notebooks and tests"
OMP_NUM_THREADS=1 python -m pytest -q -rs -m 'not alone' -n 2 --dist loadfile --durations 15
