#!/bin/sh
# Builds, checks and times everything on a machine with a GPU, in one call of about nine minutes:
#
#   tests/bench/gpu.sh [OUT_FOLDER] [--quick] [--device cpu] [--only PART ...]
#
# The environment, the tests of the model, and the report of gpu_report.py, whose options follow the
# folder (default: gpu-report). Exit code 1: something failed; the rest ran all the same.
#
# PYTHON chooses the interpreter (else .venv's, else python3). It needs torch, numpy, pyyaml,
# jsonargparse with docstring_parser and typeshed_client (its "signatures"), tqdm, xxhash and
# pytest; numba for the table's gradient; tests that need more are left out, and said so.
# WHEELS=FOLDER installs the wheels of that folder beside it, for a machine without a network.
# PART_SECONDS bounds each part, TEST_SECONDS (default 75) the tests.
set -u
cd "$(dirname "$0")/../.." || exit 2
export PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

out=gpu-report
case "${1:-}" in
  "" | -*) ;;
  *) out=$1; shift ;;
esac
mkdir -p "$out" || exit 2

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
if [ -n "${WHEELS:-}" ]; then
  site=$(mktemp -d) || exit 2
  trap 'rm -rf "$site"' EXIT
  "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" \
    "$WHEELS"/*.whl || exit 2
  export PYTHONPATH="$site:$PYTHONPATH"
fi

failed=0
quick=no
for word in "$@"; do
  [ "$word" = --quick ] && quick=yes
done

echo "== environment"
nvidia-smi -L 2>/dev/null
"$PYTHON" -c 'import elemdist.model' || { echo "elemdist does not load here" >&2; exit 2; }
"$PYTHON" -m elemdist doctor 2>&1 || echo "(the doctor found something; see also the first table of the report)"

echo "== tests"
# Every file that has cases for a GPU, and those of the model's parts.
names="attention model parity canine heads inputs table_gradient objectives slot_decoder sample"
[ "$quick" = yes ] && names="table_gradient objectives"
[ "$quick" = yes ] || gpu_tests=$(grep -l -e cuda tests/test_*.py)
files=""
for file in $(for name in $names; do echo "tests/test_$name.py"; done; echo "${gpu_tests:-}"); do
  case " $files " in *" $file "*) continue ;; esac
  [ -f "$file" ] || continue
  missing=$("$PYTHON" - "$file" <<'PY'
import ast, importlib.util, pathlib, sys
source = pathlib.Path(sys.argv[1]).read_text()
names = {"streaming"} if "import_streaming" in source else set()
for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
        names |= {alias.name.partition(".")[0] for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names.add(node.module.partition(".")[0])
print(*sorted(name for name in names if importlib.util.find_spec(name) is None))
PY
  )
  if [ -n "$missing" ]; then
    echo "left out: $file needs $missing"
  else
    files="$files $file"
  fi
done
# shellcheck disable=SC2086  # the names have no spaces
timeout "${TEST_SECONDS:-75}" "$PYTHON" -m pytest -q -p no:cacheprovider $files \
  > "$out/tests.txt" 2>&1
[ $? -eq 0 ] || failed=1
tail -n 30 "$out/tests.txt"

echo "== report"
"$PYTHON" tests/bench/gpu_report.py --out "$out/gpu.jsonl" "$@" || failed=1
echo
echo "tests: $(tail -n 1 "$out/tests.txt")"
exit $failed
