# For the lease scripts to source: install what WHEELS has, then end where a package is missing, the
# names given and those that every program needs. Needs $python; stands in the project's folder.
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    $python -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl || exit 2
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
$python - "$@" <<'CHECK' || exit 2
import importlib.util, sys
from utils.packages import NEEDED
missing = [name for name in (*NEEDED, *sys.argv[1:]) if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} has no {', '.join(missing)}; give WHEELS=DIR with their wheels")
CHECK
