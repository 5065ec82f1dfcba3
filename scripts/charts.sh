#!/usr/bin/env bash
# charts.sh: lints and renders the charts with Helm's own engine, and compares values, schema, README, alerts and dashboard with
# each other and with what the documents say.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/common.sh
CLOISTER_CACHE=$CACHE PYTHONDONTWRITEBYTECODE=1 scripts/charts/check.py
